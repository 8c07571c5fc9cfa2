"""The path prefix under which an ingress serves the service."""

from starlette.types import ASGIApp, Receive, Scope, Send


class RootPath:
    """Pure ASGI middleware that removes the prefix from paths, so that everything behind it sees the service's own.

    Paths without the prefix pass unchanged: those from an ingress that has removed it, and those of probes and scrapers
    that do not come through the ingress.

    Args:
        app: The application.
        prefix: The prefix, such as ``/limelight``.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application with the path without the prefix."""
        if scope["type"] == "http" and scope["path"].startswith(f"{self._prefix}/"):
            scope = {**scope, "path": scope["path"].removeprefix(self._prefix)}
        await self._app(scope, receive, send)
