"""int8 for CPUs: VGG19's convolutions in QDQ form, with u8 activations and s8 weights scaled per channel."""

import errno
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
from google.protobuf.message import DecodeError
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from model_export.network.arrays import Frames

# Raise it with every change of what ``quantize`` writes: agreement that was measured before is then not used any more.
QUANTIZER_REVISION = 1


class _Frames(CalibrationDataReader):
    """Feeds frames, a part at a time, to ONNX Runtime's calibration."""

    def __init__(self, parts: Iterable[Frames]) -> None:
        self.parts = iter(parts)

    def get_next(self) -> dict[str, Frames] | None:
        part = next(self.parts, None)
        return None if part is None else {"frames": part[np.newaxis]}


def quantize(model: Path, output: Path, ranges: Path, frames: Iterable[Frames] | None = None) -> None:
    """Quantize an exported fp32 network, or its encoder, to int8.

    Args:
        model: The fp32 ONNX file.
        output: The int8 ONNX file to write.
        ranges: Calibration cache with the smallest and largest value of each activation; written if it does not exist.
        frames: Frames to measure the ranges on, in parts ``(n, 224, 224, 3)`` of as many as the network takes; needed
            if ``ranges`` does not exist.

    Raises:
        OSError: A file cannot be read or written.
    """
    with _without_advice(), _full_disk_reported(), _affinity_kept():
        quantize_static(
            model,
            output,
            _Frames(frames) if frames is not None else None,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            # 7-bit weights: without VNNI, two products of u8 and s8 are added in 16 bits, which 8-bit weights overflow.
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibration_cache_path=ranges,
        )


def session_options() -> onnxruntime.SessionOptions:
    """Return options with which ONNX Runtime keeps to the processors that this process may use.

    By default it counts every core of the machine and pins a thread to each.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    return options


def ordered_ranges(ranges: Path) -> bytes:
    """Return a calibration cache in the order of its keys: ONNX Runtime's is another one in each process.

    The bytes are part of a head's identity.
    """
    return json.dumps(json.loads(ranges.read_bytes()), sort_keys=True).encode() + b"\n"


@contextmanager
def _affinity_kept() -> Iterator[None]:
    """Have calibration use ``session_options``; it has no parameter for them."""
    default, options = onnxruntime.SessionOptions, session_options()
    onnxruntime.SessionOptions = lambda: options
    try:
        yield
    finally:
        onnxruntime.SessionOptions = default


@contextmanager
def _full_disk_reported() -> Iterator[None]:
    """Raise what a full disk raises elsewhere: ONNX writes as much as fits, and fails when it reads that."""
    try:
        yield
    except DecodeError as error:
        raise OSError(errno.ENOSPC, "a temporary file was cut off") from error


@contextmanager
def _without_advice() -> Iterator[None]:
    """Mute advice on the root logger to pre-process the model, which has no batch norms and contains its shapes."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
