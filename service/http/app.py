"""The web application: routes, middleware, error handlers, start-up and shutdown."""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version

from fastapi import FastAPI
from opentelemetry.trace import NoOpTracer, Tracer
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.assembly import load_pipeline
from service.http.middleware.access_log import AccessLog, record_of
from service.http.middleware.admission import AdmissionCheck
from service.http.middleware.api_keys import OPEN_PATHS, ApiKeys
from service.http.middleware.body_limits import BodyLimits
from service.http.middleware.tracing import Tracing
from service.http.openapi import DescribedAPI
from service.http.page import page_routes
from service.http.problems import EXPECTED, problem_of, problem_response
from service.http.protocol.routes import router as protocol_router
from service.http.proxies import TrustedProxies
from service.http.routes import router
from service.http.serving import Serving
from service.metrics import Metrics
from service.settings import Settings

# Paths whose requests are predictions: they are subject to admission and counted in the metrics.
PREDICTIONS = re.compile(r"/predict|/v2/models/[^/]+(/versions/[^/]+)?/infer")
# Status of requests whose client disconnected before the answer. nginx uses this number too; only the access log and
# the metrics show it.
CLIENT_CLOSED_REQUEST = 499
# FastAPI can trace requests itself, and start exporters of its own. ``Tracing`` knows the stages of a request.
_NO_TELEMETRY = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}

logger = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    *,
    on_failure: Callable[[Exception], None] | None = None,
    tracer: Tracer | None = None,
) -> FastAPI:
    """Create the web application.

    It answers requests at once and becomes ready when the bundle has been loaded and warmed up.

    Args:
        settings: Every setting of the service.
        on_failure: Called with the error (``BundleError``, ``EngineError`` or ``DecodersError``) if the bundle cannot
            be served. By default the error is logged, and the application stays up without becoming ready.
        tracer: Makes the spans of requests. By default requests are not traced.
    """
    serving = Serving(settings, Metrics())
    app = DescribedAPI(
        requires_key=bool(settings.api_keys),
        title="Limelight",
        summary="Recognises human actions in video clips and shows where the network looked.",
        version=version("limelight"),
        lifespan=_lifespan(serving, on_failure or _log_failure),
        redirect_slashes=False,
        telemetry=_NO_TELEMETRY,
    )
    app.state.serving = serving
    app.include_router(router)
    app.include_router(protocol_router)
    page = page_routes() if settings.ui else []
    app.router.routes.extend(page)
    for error in EXPECTED:
        app.add_exception_handler(error, _answer_problem)
    app.add_exception_handler(ClientDisconnect, _answer_disconnect)
    proxies = TrustedProxies(settings.trusted_proxies)
    # Starlette puts each middleware around those added before it: a request meets the last one first.
    app.add_middleware(AdmissionCheck, serving=serving, predictions=PREDICTIONS)
    app.add_middleware(ApiKeys, keys=settings.api_keys, open_paths=OPEN_PATHS.union(route.path for route in page))
    app.add_middleware(AccessLog, metrics=serving.metrics, predictions=PREDICTIONS, proxies=proxies)
    app.add_middleware(BodyLimits, settings=settings, closing=lambda: serving.draining)
    app.add_middleware(Tracing, tracer=tracer or NoOpTracer(), proxies=proxies)
    return app


def _lifespan(
    serving: Serving, on_failure: Callable[[Exception], None]
) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    """Return a lifespan that loads the pipeline in the background and closes it at shutdown."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(_load(serving, on_failure))
        yield
        await loading
        if serving.pipeline is not None:
            await asyncio.to_thread(serving.pipeline.close)

    return lifespan


async def _load(serving: Serving, on_failure: Callable[[Exception], None]) -> None:
    try:
        serving.open(await asyncio.to_thread(load_pipeline, serving.settings, serving.metrics))
    except Exception as error:
        on_failure(error)


def _log_failure(error: Exception) -> None:
    logger.error("startup failed: %s", error)


async def _answer_problem(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    record = record_of(request)
    record.code = problem.code
    return problem_response(problem, record.request_id, request.scope["path"])


async def _answer_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)
