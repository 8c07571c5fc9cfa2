"""The application's state, and what routes share: dependencies that give them a pipeline, and cancelling work."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Annotated, Any, ParamSpec, TypeVar

from fastapi import Depends
from starlette.requests import ClientDisconnect, Request

from service.assembly import load_model, start_pipeline
from service.errors import LimelightError
from service.http.problems import Problem
from service.http.schemas import ModelFacts
from service.metrics import Metrics
from service.model.model import Model
from service.pipeline import Pipeline
from service.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")

# Seconds that shutdown waits for a bundle that is being loaded, so that decoders that are being started are ended.
LOADING_GRACE_S = 1

logger = logging.getLogger(__name__)


class Serving:
    """The state of one application, from start-up to shutdown.

    Attributes:
        pipeline: None until the bundle is loaded and warmed up.
        draining: Whether shutdown has begun: the service reports that it is not ready, but still serves predictions.
        closed: Whether predictions are refused, too.
        reading_tensors: Held while the tensors of a v2 request are parsed, because parsing can take much memory.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.pipeline: Pipeline | None = None
        self.draining = False
        self.closed = False
        self.reading_tensors = asyncio.Semaphore(1)
        self._loader: threading.Thread | None = None
        metrics.ready.set_function(lambda: self.ready)

    @property
    def ready(self) -> bool:
        """Whether gateways may send further requests to this instance."""
        pipeline = self.pipeline
        return pipeline is not None and pipeline.alive and not pipeline.decoders_problem and not self.draining

    @property
    def loading(self) -> bool:
        """Whether a thread is loading a bundle or starting the decoders."""
        return self._loader is not None and self._loader.is_alive()

    async def load(self) -> None:
        """Load the bundle, and serve it once it is warmed up. If shutdown has begun by then, serve nothing.

        Raises:
            BundleError: The bundle is missing, damaged or of another schema.
            EngineError: The network cannot run as configured.
            DecodersError: The decoder processes cannot be started.
        """
        model = await self._in_thread(load_model, self.settings, self.metrics)
        if self.draining:
            model.close()
            return
        self.pipeline = await self._in_thread(start_pipeline, model, self.settings, self.metrics)
        if not self.draining:
            self._announce("ready", model)

    async def reload(self, pipeline: Pipeline) -> None:
        """Load the bundle again and serve it once it is warmed up. If it cannot be used, keep the old one."""
        try:
            model = await self._in_thread(load_model, self.settings, self.metrics)
        except Exception as error:
            self.metrics.last_reload_successful.set(0)
            reason = str(error) or type(error).__name__  # such as a MemoryError, which says nothing
            unexpected = not isinstance(error, LimelightError)
            logger.error("reload failed, the old bundle stays in service: %s", reason, exc_info=unexpected)
            return
        self._announce("bundle reloaded", model)
        await pipeline.replace(model)

    async def close(self, loading: asyncio.Task[None]) -> None:
        """Close the pipeline. If it is still being loaded, wait for it, but not for long.

        Args:
            loading: The task that loads the pipeline.
        """
        self.draining = self.closed = True
        await asyncio.wait({loading}, timeout=LOADING_GRACE_S)
        if self.pipeline is not None:
            await asyncio.to_thread(self.pipeline.close)

    async def _in_thread(self, load: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Call a function in a daemon thread, which unlike those of ``asyncio.to_thread`` is not waited for at exit."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # from now on it cannot be cancelled

        def run() -> None:
            try:
                future.set_result(load(*args, **options))
            except BaseException as error:
                future.set_exception(error)

        self._loader = threading.Thread(target=run, name="loader", daemon=True)
        self._loader.start()
        return await asyncio.wrap_future(future)

    def _announce(self, message: str, model: Model) -> None:
        """Log the facts of the model that answers from now on, and set them in the metrics."""
        facts = ModelFacts.of(model).model_dump()
        self.metrics.model.info(facts)
        self.metrics.last_reload_successful.set(1)
        self.metrics.last_reload_success_timestamp.set_to_current_time()
        logger.info(message, extra={"model": facts})


async def _serving(request: Request) -> Serving:
    serving: Serving = request.app.state.serving
    return serving


ServingState = Annotated[Serving, Depends(_serving)]
"""The application's state."""


async def _warm_pipeline(serving: ServingState) -> Pipeline:
    if serving.pipeline is None:
        raise Problem("not_ready", "the model is being loaded; poll /health/ready")
    if not serving.pipeline.alive:
        raise Problem("not_ready", "the engine has stopped; restart the service")
    return serving.pipeline


WarmPipeline = Annotated[Pipeline, Depends(_warm_pipeline)]
"""The pipeline, for routes that are also served during shutdown."""


async def _ready_pipeline(serving: ServingState, pipeline: WarmPipeline) -> Pipeline:
    if serving.draining:
        raise _shutting_down()
    if problem := pipeline.decoders_problem:
        raise Problem("decoders_unavailable", problem)
    return pipeline


ReadyPipeline = Annotated[Pipeline, Depends(_ready_pipeline)]
"""The pipeline, for routes that say whether gateways may send further requests."""


async def _open_pipeline(serving: ServingState, pipeline: WarmPipeline) -> Pipeline:
    if serving.closed:
        raise _shutting_down()
    return pipeline


OpenPipeline = Annotated[Pipeline, Depends(_open_pipeline)]
"""The pipeline, for routes that are served until the server stops listening."""


def _shutting_down() -> Problem:
    return Problem("draining", "the service is shutting down; try another instance")


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await work for a client, and cancel it if the client disconnects.

    Args:
        request: The request, whose body has been read completely.
        work: The coroutine to run.

    Returns:
        The result of ``work``.

    Raises:
        ClientDisconnect: The client disconnected first.
    """
    task = asyncio.create_task(work)
    disconnected = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        disconnected.cancel()
        await asyncio.gather(task, disconnected, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    await request.receive()  # after the body, only a disconnect can arrive
