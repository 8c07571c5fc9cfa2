"""The web application: routes, middleware, error handlers, start-up and shutdown."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Collection
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.routing import APIRoute
from opentelemetry.trace import NoOpTracer, Tracer
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.http.docs import docs_routes
from service.http.middleware.access_log import AccessLog, record_of
from service.http.middleware.admission import AdmissionCheck
from service.http.middleware.api_keys import BASIC_PATHS, OPEN_PATHS, ApiKeys
from service.http.middleware.body_limits import BodyLimits
from service.http.middleware.head import HeadAsGet
from service.http.middleware.hosts import AllowedHosts, is_on_loopback
from service.http.middleware.root_path import RootPath
from service.http.middleware.tracing import Tracing
from service.http.openapi import DescribedAPI
from service.http.page import page_routes
from service.http.problems import EXPECTED, problem_of, problem_response
from service.http.protocol.routes import infer
from service.http.protocol.routes import router as protocol_router
from service.http.proxies import TrustedProxies
from service.http.routes import predict, router
from service.http.serving import Serving
from service.metrics import Metrics
from service.settings import Settings

# Status of requests whose client disconnected before the answer. nginx uses this number too; only the access log and
# the metrics show it.
CLIENT_CLOSED_REQUEST = 499
# Headers of answers that web applications of other origins may read.
EXPOSED = ("Inference-Header-Content-Length", "Retry-After", "Server-Timing", "X-Request-ID")
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
    metrics = Metrics(
        deadline_s=settings.request_timeout_s,
        max_duration_s=settings.max_duration_s,
        max_body_bytes=settings.max_body_bytes,
    )
    serving = Serving(settings, metrics)
    app = DescribedAPI(
        requires_key=bool(settings.api_keys),
        title="Limelight",
        summary="Recognises human actions in video clips and shows where the network looked.",
        version=version("limelight"),
        lifespan=_lifespan(serving, on_failure or _log_failure),
        redirect_slashes=False,
        servers=[{"url": settings.root_path}] if settings.root_path else None,
        docs_url=None,  # ``docs_routes`` loads nothing from other hosts
        redoc_url=None,
        telemetry=_NO_TELEMETRY,
    )
    app.state.serving = serving
    app.include_router(router)
    app.include_router(protocol_router)
    files = docs_routes() + (page_routes(settings.root_path) if settings.ui else [])
    app.router.routes.extend(files)
    for error in EXPECTED:
        app.add_exception_handler(error, _answer_problem)
    app.add_exception_handler(ClientDisconnect, _answer_disconnect)
    open_paths = OPEN_PATHS.union(route.path for route in files) - BASIC_PATHS
    _add_middleware(app, serving, tracer or NoOpTracer(), open_paths)
    return app


def _add_middleware(app: FastAPI, serving: Serving, tracer: Tracer, open_paths: Collection[str]) -> None:
    """Add every middleware. Each is put around those added before it: a request meets the last one first."""
    settings = serving.settings
    proxies = TrustedProxies(settings.trusted_proxies)
    app.add_middleware(HeadAsGet)
    app.add_middleware(AdmissionCheck, serving=serving)
    app.add_middleware(ApiKeys, keys=settings.api_keys, open_paths=open_paths)
    if not settings.api_keys and settings.unix_socket is None and is_on_loopback(settings.host):
        hosts = {settings.host, *settings.allowed_hosts}
        app.add_middleware(AllowedHosts, hosts=hosts, origins=settings.cors_origins)
    # The routes of predictions, which are subject to admission and counted in the metrics.
    routes = (*router.routes, *protocol_router.routes)
    predictions = [route for route in routes if isinstance(route, APIRoute) and route.endpoint in {predict, infer}]
    app.add_middleware(AccessLog, metrics=serving.metrics, predictions=predictions, proxies=proxies)
    if settings.cors_origins:
        # Around ``AccessLog``, which answers problems: a web application can read only answers with CORS headers.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],  # safe, because browsers add no credentials to these requests
            expose_headers=EXPOSED,
        )
    app.add_middleware(BodyLimits, settings=settings, closing=lambda: serving.draining)
    app.add_middleware(Tracing, tracer=tracer, proxies=proxies)
    if settings.root_path:
        app.add_middleware(RootPath, prefix=settings.root_path)


def _lifespan(
    serving: Serving, on_failure: Callable[[Exception], None]
) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    """Return a lifespan that loads the pipeline in the background, and at shutdown closes it or abandons loading it."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(_load(serving, on_failure))
        yield
        await serving.close(loading)

    return lifespan


async def _load(serving: Serving, on_failure: Callable[[Exception], None]) -> None:
    try:
        await serving.load()
    except Exception as error:
        if not serving.draining:
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
