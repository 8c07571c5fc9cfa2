"""Serves files that do not change while the service runs, kept in memory."""

import hashlib
from importlib.resources.abc import Traversable
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".mp4": "video/mp4",
    ".svg": "image/svg+xml",
}


def static_route(path: str, file: Traversable, policy: str) -> Route:
    """Return a route that is not part of the API.

    Args:
        path: The path to serve the file at.
        file: The file; its suffix, a key of ``MEDIA_TYPES``, determines its type.
        policy: Its Content-Security-Policy.
    """
    return Route(path, _StaticFile(file, policy).answer, include_in_schema=False)


class _StaticFile:
    def __init__(self, file: Traversable, policy: str) -> None:
        self._content = file.read_bytes()
        self._media_type = MEDIA_TYPES[PurePath(file.name).suffix]
        self._headers = {
            "Cache-Control": "no-cache",  # browsers keep a copy and revalidate it: a new version shows at once
            "Content-Security-Policy": policy,
            "ETag": f'"{hashlib.sha256(self._content).hexdigest()[:20]}"',
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }

    async def answer(self, request: Request) -> Response:
        """Answer with the file, or with 304 if the client's copy is current (RFC 9110, section 13.1.2)."""
        if self._headers["ETag"] in request.headers.get("If-None-Match", ""):
            return Response(status_code=304, headers=self._headers)
        return Response(self._content, media_type=self._media_type, headers=self._headers)
