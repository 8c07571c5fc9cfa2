"""What the routes serve from, and the dependencies by which they get it."""

import asyncio
import logging
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from service.assembly import load_model
from service.http.problems import Problem
from service.http.schemas import ModelFacts
from service.metrics import Metrics
from service.model.model import Model
from service.pipeline import Pipeline
from service.settings import Settings

logger = logging.getLogger(__name__)


class Serving:
    """The state of one application, from start-up to shutdown.

    Attributes:
        pipeline: None until the bundle is loaded and warmed up.
        draining: Whether shutdown has begun: readiness is refused, predictions are still served.
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
        """Whether more requests may be sent here."""
        return self.pipeline is not None and self.pipeline.alive and not self.draining

    def open(self, pipeline: Pipeline) -> None:
        """Serve from this pipeline from now on."""
        self.pipeline = pipeline
        self.announce("ready", pipeline.model)

    async def reload(self, pipeline: Pipeline) -> None:
        """Load the bundle again and serve it once it is warm. If it cannot be used, the old one stays."""
        try:
            model = await asyncio.to_thread(load_model, self.settings, self.metrics)
        except Exception as error:
            logger.error("reload failed, the old bundle stays in service: %s", error)
            return
        self.announce("the bundle has been replaced", model)
        await pipeline.replace(model)

    def announce(self, message: str, model: Model) -> None:
        """Log a message with the facts of the model that answers from now on, and put them into the metrics."""
        facts = ModelFacts.of(model).model_dump()
        self.metrics.model.info(facts)
        logger.info(message, extra={"model": facts})


async def _serving(request: Request) -> Serving:
    serving: Serving = request.app.state.serving
    return serving


async def _warm_pipeline(serving: Annotated[Serving, Depends(_serving)]) -> Pipeline:
    if serving.pipeline is None:
        raise Problem("not_ready", "the model is being loaded; poll /health/ready")
    if not serving.pipeline.alive:
        raise Problem("not_ready", "the engine has stopped; the service has to be restarted")
    return serving.pipeline


Served = Annotated[Serving, Depends(_serving)]
"""The application's state, for a route."""
Warm = Annotated[Pipeline, Depends(_warm_pipeline)]
"""The pipeline, for a route that answers during shutdown, too."""


async def _ready_pipeline(serving: Served, pipeline: Warm) -> Pipeline:
    if serving.draining:
        raise Problem("draining", "the service is shutting down; try another instance")
    return pipeline


async def _open_pipeline(serving: Served, pipeline: Warm) -> Pipeline:
    if serving.closed:
        raise Problem("draining", "the service is shutting down; try another instance")
    return pipeline


Ready = Annotated[Pipeline, Depends(_ready_pipeline)]
"""The pipeline, for a route that is refused as soon as shutdown begins."""
Open = Annotated[Pipeline, Depends(_open_pipeline)]
"""The pipeline, for a route that is served until connections are no longer accepted."""
