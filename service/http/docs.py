"""Serves Swagger UI at ``/docs``, with its files from the package ``fastapi-offline`` instead of another host."""

from importlib.resources import files

from starlette.routing import Route

from service.http.static import static_route

# Swagger UI has inline pictures in its style sheet.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def docs_routes() -> list[Route]:
    """Return routes for ``/docs`` and for the files that it loads under ``/docs/``. They are not part of the API."""
    web, swagger_ui = files("service") / "web", files("fastapi_offline") / "static"
    served = {
        "/docs": web / "docs" / "index.html",
        "/docs/docs.js": web / "docs" / "docs.js",
        "/docs/icon.svg": web / "icon.svg",
        "/docs/swagger-ui-bundle.js": swagger_ui / "swagger-ui-bundle.js",
        "/docs/swagger-ui.css": swagger_ui / "swagger-ui.css",
    }
    return [static_route(path, file, POLICY) for path, file in served.items()]
