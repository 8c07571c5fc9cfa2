"""int8 for CPUs: VGG19's convolutions in QDQ form, u8 activations, s8 weights a channel of their own."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static


class _Clips(CalibrationDataReader):
    """Feeds clips, one at a time, to ONNX Runtime's calibration."""

    def __init__(self, clips: Iterable[npt.NDArray[np.uint8]]) -> None:
        self.clips = iter(clips)

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        clip = next(self.clips, None)
        return None if clip is None else {"frames": clip[np.newaxis]}


def quantize(model: Path, output: Path, ranges: Path, clips: Iterable[npt.NDArray[np.uint8]] | None = None) -> None:
    """Writes the int8 variant of an exported fp32 network.

    Args:
        model: the fp32 ONNX file.
        output: where the int8 file goes.
        ranges: calibration cache: least and greatest value of each activation. Read where it exists, else written.
        clips: frames ``(40, 224, 224, 3)`` to measure the ranges on; needed only where ``ranges`` does not exist.

    Raises:
        OSError: a file cannot be read or written.
    """
    with _without_advice():
        quantize_static(
            model,
            output,
            _Clips(clips) if clips is not None else None,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            # 7-bit weights: without VNNI, two products of u8 and s8 are added in 16 bits, which 8-bit weights overflow.
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibration_cache_path=ranges,
        )


@contextmanager
def _without_advice() -> Iterator[None]:
    """Mutes the advice to pre-process the model, on the root logger: it has no batch norms and knows its shapes."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
