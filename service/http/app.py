"""The web application: routes, middleware, and their start-up and shutdown."""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.assembly import load_pipeline
from service.http.middleware.access_log import AccessLog, record_of
from service.http.middleware.admission import AdmissionCheck
from service.http.middleware.api_keys import OPEN, ApiKeys
from service.http.middleware.body_limits import BodyLimits
from service.http.openapi import DescribedAPI
from service.http.page import page_routes
from service.http.problems import EXPECTED, problem_of, problem_response
from service.http.protocol.routes import router as protocol_router
from service.http.routes import CLIENT_GONE, router
from service.http.serving import Serving
from service.metrics import Metrics
from service.settings import Settings

# Paths whose requests are predictions.
PREDICTIONS = re.compile(r"/predict|/v2/models/[^/]+(/versions/[^/]+)?/infer")

logger = logging.getLogger(__name__)


def create_app(settings: Settings, *, on_failure: Callable[[Exception], None] | None = None) -> FastAPI:
    """The web application. It listens at once, and is ready when the bundle is loaded and warmed up.

    `on_failure` hears why that did not work (BundleError, EngineError, DecodersError), so that the process can end;
    without it the reason is logged and the application stays alive and not ready.
    """
    serving = Serving(settings, Metrics())

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(_start(serving, on_failure or _log_failure))
        yield
        await loading
        if serving.pipeline is not None:
            await asyncio.to_thread(serving.pipeline.close)

    app = DescribedAPI(
        guarded=bool(settings.api_keys),
        title="Limelight",
        summary="Recognises human actions in video clips and shows where the network looked.",
        version=version("limelight"),
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.serving = serving
    app.include_router(router)
    app.include_router(protocol_router)
    for error in EXPECTED:
        app.add_exception_handler(error, _refuse)
    app.add_exception_handler(ClientDisconnect, _note_absence)
    page = page_routes() if settings.ui else []
    app.router.routes.extend(page)
    app.add_middleware(AdmissionCheck, serving=serving, predictions=PREDICTIONS)
    app.add_middleware(ApiKeys, keys=settings.api_keys, open_paths=OPEN.union(route.path for route in page))
    app.add_middleware(AccessLog, metrics=serving.metrics, measured=PREDICTIONS)
    app.add_middleware(BodyLimits, settings=settings, closing=lambda: serving.draining)
    return app


async def _start(serving: Serving, on_failure: Callable[[Exception], None]) -> None:
    try:
        serving.open(await asyncio.to_thread(load_pipeline, serving.settings, serving.metrics))
    except Exception as error:
        on_failure(error)


def _log_failure(error: Exception) -> None:
    logger.error("startup failed: %s", error)


async def _refuse(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    record = record_of(request)
    record.code = problem.code
    return problem_response(problem, record.request_id, request.scope["path"])


async def _note_absence(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)
