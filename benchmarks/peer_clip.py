"""What a user of LitServe or BentoML would write around the bundle's network: PyAV for the frames, ONNX Runtime."""

import os
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import onnxruntime as ort

FRAMES, SIZE = 40, 224


class ClipModel:
    """The network of LIMELIGHT_BUNDLE, fed with clips."""

    def __init__(self) -> None:
        path = Path(os.environ["LIMELIGHT_BUNDLE"]) / "model.fp32.onnx"
        self._session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])

    def predict(self, clip: BinaryIO | str) -> dict[str, Any]:
        """Probabilities and attention maps of a clip, as what becomes JSON."""
        with av.open(clip, "r") as container:
            frames = list(container.decode(video=0))
        wanted = (np.arange(FRAMES) + 0.5) * len(frames) / FRAMES
        images = [frames[int(index)].reformat(SIZE, SIZE, "rgb24").to_ndarray() for index in wanted]
        probabilities, attention = self._session.run(None, {"frames": np.stack(images)[None]})
        return {"probabilities": probabilities[0].tolist(), "attention": attention[0].tolist()}
