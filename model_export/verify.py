"""Compares an exported network with the Keras network it was made from."""

import json
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
import onnxruntime
from scipy.stats import binomtest

from model_export.data.encoders import Cuboids, keras_encode
from service.model.bundle import Agreement, Bundle, Precision

# Two classes this close are a tie: naming the one or the other is no disagreement.
TIE = 2e-4

Outputs = dict[str, npt.NDArray[np.float32]]
Frames = npt.NDArray[np.uint8]


class OnnxNetwork:
    """An ONNX file on the CPU.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, frames: Frames) -> Outputs:
        """Outputs for one clip's frames ``(40, 224, 224, 3)``, without the batch axis."""
        found = self.session.run(self.names, {"frames": frames[np.newaxis]})
        return {name: value[0] for name, value in zip(self.names, found, strict=True)}


def keras_outputs(encoder: keras.Model, head: keras.Model, frames: Frames) -> Outputs:
    """What Keras computes for one clip's frames ``(40, 224, 224, 3)``, in float32."""
    return head_outputs(head, keras_encode(encoder)(frames))


def head_outputs(head: keras.Model, features: Cuboids) -> Outputs:
    """What Keras computes for one clip's float32 features ``(40, 7, 7, channels)``."""
    return {name: np.asarray(value)[0] for name, value in head.predict_on_batch(features[np.newaxis]).items()}


def largest_difference(found: Outputs, expected: Outputs) -> float:
    """The largest absolute difference in any probability or attention value."""
    return max(float(np.abs(found[name] - expected[name]).max()) for name in expected)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One clip through one precision: did it name Keras' class, and how far was it off."""

    clip: str
    precision: Precision
    agrees: bool
    max_abs_difference: float


def compare(
    bundle: Bundle,
    precisions: Iterable[Precision],
    clips: Iterable[tuple[str, Callable[[], tuple[Frames, Outputs]]]],
    log: Path,
) -> Iterator[Comparison]:
    """Runs clips through the bundle's variants, going on where an interrupted run stopped.

    Args:
        bundle: what is checked.
        precisions: which of its variants.
        clips: name of each, and how to get its frames and what Keras computes for it.
        log: one JSON object a line, of this bundle only; comparisons in it are not made again.
    """
    done = _read_log(log, bundle)
    networks = {precision: OnnxNetwork(bundle.model_path(precision)) for precision in precisions}
    with log.open("a") as file:
        for name, get in clips:
            yield from (done[name, p] for p in networks if (name, p) in done)
            missing = [p for p in networks if (name, p) not in done]
            if not missing:
                continue
            frames, expected = get()
            for precision in missing:
                comparison = _compare(name, precision, networks[precision](frames), expected)
                sha256 = bundle.manifest.precisions[precision].sha256
                file.write(json.dumps({"sha256": sha256, **asdict(comparison)}) + "\n")
                file.flush()
                yield comparison


def _read_log(log: Path, bundle: Bundle) -> dict[tuple[str, Precision], Comparison]:
    if not log.exists():
        return {}
    current = {entry.sha256 for entry in bundle.manifest.precisions.values()}
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    kept = [Comparison(**line) for line in lines if line.pop("sha256") in current]
    return {(comparison.clip, comparison.precision): comparison for comparison in kept}


def _compare(name: str, precision: Precision, found: Outputs, expected: Outputs) -> Comparison:
    probabilities = expected["probabilities"]
    named = int(found["probabilities"].argmax())
    tie = probabilities.max() - probabilities[named] < TIE
    return Comparison(name, precision, bool(tie), largest_difference(found, expected))


def agreement(comparisons: Iterable[Comparison]) -> Agreement:
    """Top-1 agreement of one precision with its 95 % Wilson score interval."""
    seen = list(comparisons)
    agreeing = sum(comparison.agrees for comparison in seen)
    interval = binomtest(agreeing, len(seen)).proportion_ci(0.95, method="wilson")
    return Agreement(
        top1=agreeing / len(seen),
        n=len(seen),
        low=float(interval.low),
        high=float(interval.high),
        max_abs_difference=max(comparison.max_abs_difference for comparison in seen),
        device=f"CPUExecutionProvider on {_processor()}, ONNX Runtime {onnxruntime.__version__}",
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line for line in lines if line.startswith("flags")), "")
    return f"{model} ({'with' if 'vnni' in flags else 'without'} VNNI)"
