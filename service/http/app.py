import asyncio
import contextlib
import logging
import os
import re
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.http.admission import AdmissionCheck
from service.http.auth import OPEN, ApiKeys
from service.http.guard import BodyGuard
from service.http.observe import Observe, record_of
from service.http.openapi import DescribedAPI
from service.http.page import page_routes
from service.http.problems import EXPECTED, problem_of, problem_response
from service.http.protocol.routes import router as protocol_router
from service.http.routes import CLIENT_GONE, Serving, router
from service.metrics import Metrics
from service.pipeline import CudaOptions, DecodeLimits, Engine, Model, Pipeline, load_bundle, start_decoders
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
    app.add_middleware(Observe, metrics=serving.metrics, measured=PREDICTIONS)
    app.add_middleware(BodyGuard, settings=settings, closing=lambda: serving.draining)
    return app


def load_model(settings: Settings, metrics: Metrics) -> Model:
    """Load and warm up the bundle that the settings name. Takes seconds. Raises BundleError, EngineError."""
    bundle = load_bundle(settings.bundle)
    engine = Engine(
        bundle,
        device=settings.device,
        precision=settings.precision,
        batch_sizes=settings.batch_sizes,
        threads=settings.threads,
        spinning=settings.spinning,
        cuda=CudaOptions(
            conv_search=settings.cuda_conv_search,
            memory_limit_bytes=settings.gpu_mem_limit_bytes,
            graphs=settings.cuda_graphs,
            prefer_nhwc=settings.cuda_prefer_nhwc,
        ),
    )
    return Model(bundle, engine, metrics, max_queue=settings.max_queue)


def load_pipeline(settings: Settings, metrics: Metrics) -> Pipeline:
    """Load and warm up the bundle that the settings name, start decoders. Takes seconds.

    Raises BundleError, EngineError, DecodersError.
    """
    model = load_model(settings, metrics)
    try:
        decoders = start_decoders(
            DecodeLimits(
                max_duration_s=settings.max_duration_s,
                max_pixels=settings.max_pixels,
                max_frames=settings.max_frames,
                timeout_s=settings.decode_timeout_s,
            ),
            memory_bytes=settings.decode_memory_bytes,
            require_sandbox=settings.require_sandbox,
        )
    except BaseException:
        model.close()
        raise
    workers = settings.decode_workers or len(os.sched_getaffinity(0))
    return Pipeline(model, decoders, metrics, decode_workers=workers)


async def reload_model(serving: Serving, pipeline: Pipeline) -> None:
    """Serve the bundle that now lies where the settings say, once it is warm. A bad one is refused: nothing changes."""
    try:
        model = await asyncio.to_thread(load_model, serving.settings, serving.metrics)
    except Exception as error:
        logger.error("the new bundle is refused and the old one stays: %s", error)
        return
    serving.announce("the bundle has been replaced", model)
    await pipeline.replace(model)


async def _start(serving: Serving, on_failure: Callable[[Exception], None]) -> None:
    try:
        serving.open(await asyncio.to_thread(load_pipeline, serving.settings, serving.metrics))
    except Exception as error:
        on_failure(error)


def _log_failure(error: Exception) -> None:
    logger.error("not ready, and never will be: %s", error)


async def _refuse(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    record = record_of(request)
    record.code = problem.code
    return problem_response(problem, record.request_id, request.scope["path"])


async def _note_absence(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)
