"""Refuses predictions early if the service has no room for another clip."""

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.middleware.access_log import record_of
from service.http.serving import Serving


class AdmissionCheck:
    """Pure ASGI middleware that refuses a prediction by its head if no further clip is admitted.

    A refusal then costs neither routing nor reading the body, at a time when other requests need the processor. The
    check reserves no place: the pipeline admits a clip once it has arrived completely.

    Args:
        app: The application to call if a clip would be admitted.
        serving: The application's state.

    Raises:
        Overloaded: No further clip is admitted.
    """

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self._app = app
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check predictions while the service is open, and pass everything else on."""
        if scope["type"] == "http" and (record := record_of(Request(scope))).is_prediction:
            pipeline = self._serving.pipeline
            if pipeline is not None and pipeline.alive and not self._serving.closed:
                pipeline.check_admission(record.arrived + self._serving.settings.request_timeout_s)
        await self._app(scope, receive, send)
