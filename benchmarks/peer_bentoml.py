"""The bundle's network behind BentoML, for ``bench_peers.py``: ``bentoml serve benchmarks.peer_bentoml:Clips``."""

import os
from pathlib import Path
from typing import Any

import bentoml

from benchmarks.peer_clip import ClipModel


@bentoml.service(workers=int(os.environ["PEER_WORKERS"]))
class Clips:
    """Classifies a clip sent as the file ``file`` of a form."""

    def __init__(self) -> None:
        self.model = ClipModel()

    @bentoml.api
    def predict(self, file: Path) -> dict[str, Any]:
        """Return probabilities and attention maps."""
        return self.model.predict(str(file))
