"""Serves the web page: the files of ``service/web``, kept in memory."""

import hashlib
from importlib.resources import files
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
# Nothing from other hosts, nothing inline, no markup made from strings: text from a clip or an answer can be displayed
# but never executed.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Cache-Control": "no-cache",  # browsers keep a copy and revalidate it by its ETag: a new version shows at once
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def page_routes() -> list[Route]:
    """Return routes for ``/`` and for the files that the page loads under ``/web/``. They are not part of the API."""
    routes = []
    for file in (files("service") / "web").iterdir():
        media_type = MEDIA_TYPES.get(PurePath(file.name).suffix)
        if media_type:  # skips Python modules and files that an editor may have left behind
            path = "/" if file.name == "index.html" else f"/web/{file.name}"
            routes.append(Route(path, _StaticFile(file.read_bytes(), media_type).answer))
    return routes


class _StaticFile:
    """A file that does not change while the service runs."""

    def __init__(self, content: bytes, media_type: str) -> None:
        self._content = content
        self._media_type = media_type
        self._headers = HEADERS | {"ETag": f'"{hashlib.sha256(content).hexdigest()[:20]}"'}

    async def answer(self, request: Request) -> Response:
        """Answer with the file, or with 304 if the client's copy is current (RFC 9110, section 13.1.2)."""
        if self._headers["ETag"] in request.headers.get("If-None-Match", ""):
            return Response(status_code=304, headers=self._headers)
        return Response(self._content, media_type=self._media_type, headers=self._headers)
