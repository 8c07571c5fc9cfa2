"""Serves the web page: the files of ``service/web``."""

from importlib.resources import files
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from service.http.static import MEDIA_TYPES, static_route

# Nothing from other hosts, nothing inline, no markup made from strings: text from a clip or an answer can be displayed
# but never executed.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


def page_routes(root_path: str) -> list[Route]:
    """Return routes for ``/`` and for the files that the page loads under ``/web/``. They are not part of the API.

    Args:
        root_path: The prefix under which the service is reached, or "". Without a slash at its end it redirects to the
            page, whose addresses are relative.
    """
    routes = [
        static_route("/" if file.name == "index.html" else f"/web/{file.name}", file, POLICY)
        for file in (files("service") / "web").iterdir()
        if PurePath(file.name).suffix in MEDIA_TYPES  # skips Python modules and what an editor may have left behind
    ]
    if root_path:
        routes.append(Route(root_path, _add_slash, include_in_schema=False))
    return routes


async def _add_slash(request: Request) -> Response:
    name = request.scope["path"].rpartition("/")[2]
    return RedirectResponse(f"{name}/")  # relative, because another prefix may have been removed before
