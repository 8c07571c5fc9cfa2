#!/usr/bin/env python
"""Stands in for Grafana, whose image the tests cannot rely on: answers with the request's headers and its settings."""

import json
import os
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        settings = {name: value for name, value in os.environ.items() if name.startswith("GF_")}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"headers": dict(self.headers), "settings": settings}).encode())


HTTPServer(("", 3000), Handler).serve_forever()
