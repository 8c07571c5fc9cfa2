"""A bundle's network that answers clips: the engine in a thread of its own, with a queue in front of it."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from service.model.batcher import Batcher, Inference
from service.model.bundle import Bundle
from service.model.engine import Engine


class Model:
    """Classifies clips with a bundle's network until it is closed.

    The constructor warms the engine up, which takes seconds.

    Args:
        bundle: The bundle that the engine runs.
        engine: The engine; from now on it belongs to the model's thread.
        max_queue: Clips that may wait for the engine besides one full batch.
        on_batch: Called in the engine's thread with the number of clips of each batch.
        on_failure: Called in the engine's thread for each batch that the network fails on.

    Raises:
        EngineError: The engine cannot run one of its batch sizes, or the network overflows.

    Attributes:
        manifest: The bundle's manifest.
        precision: The precision that runs.
        provider: ONNX Runtime's execution provider that runs it.
        capacity: Number of clips that may wait or run at a time. Callers keep to it; ``answer`` refuses none, because
            clips that were admitted for the model before may be more.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        *,
        max_queue: int,
        on_batch: Callable[[int], Any] = lambda clips: None,
        on_failure: Callable[[], Any] = lambda: None,
    ) -> None:
        self.manifest = bundle.manifest
        self.precision: str = engine.precision
        self.provider = engine.provider
        self.capacity = max_queue + max(engine.batch_sizes)
        self._batcher = Batcher(
            engine.run,
            batch_sizes=engine.batch_sizes,
            warm_up=engine.warm_up,
            on_batch=on_batch,
            on_failure=on_failure,
        )
        self._holders = 0
        self._free = asyncio.Event()
        self._free.set()

    @property
    def alive(self) -> bool:
        """Whether the model still accepts clips."""
        return self._batcher.alive

    @property
    def depth(self) -> int:
        """Number of clips that wait for the engine now."""
        return self._batcher.depth

    def answer(
        self, frames: npt.NDArray[np.uint8], deadline: float, on_run: Callable[[], Any] = lambda: None
    ) -> Coroutine[Any, Any, Inference]:
        """Classify one clip; see ``Batcher.submit``."""
        return self._batcher.submit(frames, deadline, on_run)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep ``close_when_free`` waiting during a ``with`` statement. Call it from one event loop only."""
        self._holders += 1
        self._free.clear()
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders:
                self._free.set()

    async def close_when_free(self) -> None:
        """Wait until the model is no longer held, then close it."""
        await self._free.wait()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Refuse new clips, answer those that wait, then stop. Blocks until that is done."""
        self._batcher.close()
