"""The code that a user of LitServe or BentoML would write for the bundle's network, with PyAV and ONNX Runtime."""

import os
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import onnxruntime as ort

FRAMES, SIZE = 40, 224


class ClipModel:
    """The network of the bundle in ``LIMELIGHT_BUNDLE``."""

    def __init__(self) -> None:
        path = Path(os.environ["LIMELIGHT_BUNDLE"]) / "model.fp32.onnx"
        self._session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])

    def predict(self, clip: BinaryIO | str) -> dict[str, Any]:
        """Return a clip's probabilities and attention maps as JSON-serialisable values."""
        with av.open(clip, "r") as container:
            frames = list(container.decode(video=0))
        wanted = (np.arange(FRAMES) + 0.5) * len(frames) / FRAMES
        images = [frames[int(index)].reformat(SIZE, SIZE, "rgb24").to_ndarray() for index in wanted]
        probabilities, attention = self._session.run(None, {"frames": np.stack(images)[None]})
        return {"probabilities": probabilities[0].tolist(), "attention": attention[0].tolist()}
