"""HEAD on every path that answers GET."""

from starlette.types import ASGIApp, Receive, Scope, Send


class HeadAsGet:
    """Pure ASGI middleware that routes HEAD as GET. The server leaves out the body of the answer.

    The server decides by the method in its own scope, so that one stays unchanged. For the same reason this is the
    innermost middleware: the access log shows the method that was sent.

    Args:
        app: The router.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the router, with GET instead of HEAD."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)
