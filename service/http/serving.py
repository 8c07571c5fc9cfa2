"""The application's state, and what routes share: dependencies that give them a pipeline, and cancelling work."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Depends
from starlette.requests import ClientDisconnect, Request

from service.assembly import load_model
from service.http.problems import Problem
from service.http.schemas import ModelFacts
from service.metrics import Metrics
from service.model.model import Model
from service.pipeline import Pipeline
from service.settings import Settings

T = TypeVar("T")

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
        metrics.ready.set_function(lambda: self.ready)

    @property
    def ready(self) -> bool:
        """Whether gateways may send further requests to this instance."""
        return self.pipeline is not None and self.pipeline.alive and not self.draining

    def open(self, pipeline: Pipeline) -> None:
        """Serve from this pipeline from now on."""
        self.pipeline = pipeline
        self._announce("ready", pipeline.model)

    async def reload(self, pipeline: Pipeline) -> None:
        """Load the bundle again and serve it once it is warmed up. If it cannot be used, keep the old one."""
        try:
            model = await asyncio.to_thread(load_model, self.settings, self.metrics)
        except Exception as error:
            logger.error("reload failed, the old bundle stays in service: %s", error)
            return
        self._announce("bundle reloaded", model)
        await pipeline.replace(model)

    def _announce(self, message: str, model: Model) -> None:
        """Log the facts of the model that answers from now on, and set them in the metrics."""
        facts = ModelFacts.of(model).model_dump()
        self.metrics.model.info(facts)
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
    return pipeline


ReadyPipeline = Annotated[Pipeline, Depends(_ready_pipeline)]
"""The pipeline, for routes that are refused as soon as shutdown begins."""


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
