"""Predictions for which there is no place: refused at their head."""

import re

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.middleware.access_log import record_of
from service.http.serving import Serving


class AdmissionCheck:
    """Pure ASGI middleware: where no more clips are let in, POSTs to `predictions` go no further.

    So a refusal costs neither routing nor the body, at the very time when others need the processor. A clip takes its
    place only once it is here. Raises the pipeline's Overloaded.
    """

    def __init__(self, app: ASGIApp, serving: Serving, predictions: re.Pattern[str]) -> None:
        self._app = app
        self._serving = serving
        self._predictions = predictions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "http" and scope["method"] == "POST" and self._predictions.fullmatch(scope["path"]):
            pipeline = self._serving.pipeline
            if pipeline is not None and pipeline.alive and not self._serving.closed:
                pipeline.check_admission(record_of(Request(scope)).arrived + self._serving.settings.request_timeout_s)
        await self._app(scope, receive, send)
