"""What the quantizer writes for a small network, computed by hand.

If this fails because the quantizer was changed on purpose, raise ``QUANTIZER_REVISION``: agreement that was measured
before is not that of the new files.
"""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_export.network.arrays import Frames
from model_export.quantize import QUANTIZER_REVISION, ordered_ranges, quantize
from tests.full_disk import no_file_longer_than
from tests.processes import affinities, on_one_processor

KERNEL = np.random.default_rng(0).normal(0, [[[[1.0]]], [[[20.0]]]], (2, 3, 3, 3)).astype(np.float32)
BIAS = np.array([0.5, -3], np.float32)
CLIPS = [np.linspace(0, most, 192).astype(np.uint8).reshape(8, 8, 3) for most in (100, 200)]


@pytest.fixture(scope="module")
def small() -> onnx.ModelProto:
    """A convolution over frames."""
    node = helper.make_node
    nodes = [
        node("Cast", ["frames"], ["pixels"], to=TensorProto.FLOAT),
        node("Transpose", ["pixels"], ["channels"], perm=[0, 3, 1, 2]),
        node("Conv", ["channels", "kernel", "bias"], ["sums"], pads=[1, 1, 1, 1]),
        node("Relu", ["sums"], ["rectified"]),
        node("ReduceMean", ["rectified"], ["probabilities"], axes=[2, 3], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(KERNEL, "kernel"), numpy_helper.from_array(BIAS, "bias")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def quantized(small: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> onnx.GraphProto:
    """The convolution, quantized on two clips that hold every value from 0 to 200."""
    folder = tmp_path_factory.mktemp("quantized")
    (folder / "fp32.onnx").write_bytes(small.SerializeToString())
    quantize(folder / "fp32.onnx", folder / "int8.onnx", folder / "ranges.json", CLIPS)
    return onnx.load(folder / "int8.onnx").graph


def constant(graph: onnx.GraphProto, name: str) -> npt.NDArray[np.float64]:
    """A constant, as it is after its ``DequantizeLinear``, if it has one."""
    made_by = {output: node for node in graph.node for output in node.output}
    values = {initializer.name: numpy_helper.to_array(initializer) for initializer in graph.initializer}
    if name in values:
        return values[name].astype(float)
    quantity, scale, zero = (values[each] for each in made_by[name].input)
    shape = [-1] + [1] * (quantity.ndim - 1)
    value: npt.NDArray[np.float64] = (quantity.astype(float) - zero.reshape(shape)) * scale.astype(float).reshape(shape)
    return value


def test_revision_1_quantizes_convolutions_to_unsigned_activations_and_7_bit_weights(
    quantized: onnx.GraphProto,
) -> None:
    assert QUANTIZER_REVISION == 1
    operators = sorted(node.op_type for node in quantized.node)
    assert operators == sorted(
        ["Cast", "Transpose", "Conv", "Relu", "ReduceMean", *["QuantizeLinear"] * 2, *["DequantizeLinear"] * 4]
    )
    (convolution,) = (node for node in quantized.node if node.op_type == "Conv")
    kernel = constant(quantized, convolution.input[1])
    steps = np.abs(KERNEL).max(axis=(1, 2, 3), keepdims=True) / 64
    np.testing.assert_allclose(kernel, np.round(KERNEL / steps).clip(-64, 64) * steps, rtol=1e-5)
    activation = next(node for node in quantized.node if node.op_type == "QuantizeLinear")
    assert activation.input[0] == "channels"
    scale, zero = (float(constant(quantized, name)) for name in activation.input[1:])
    assert scale == pytest.approx(200 / 255)
    assert zero == 0
    bias = constant(quantized, convolution.input[2])
    np.testing.assert_allclose(bias, BIAS, atol=scale * steps.max())
    assert not np.array_equal(bias, BIAS)


def test_the_output_of_a_convolution_is_quantized_before_it_is_rectified(quantized: onnx.GraphProto) -> None:
    assert [node.input[0] for node in quantized.node if node.op_type == "QuantizeLinear"] == ["channels", "sums"]


def test_a_full_disk_is_an_error_that_says_so(small: onnx.ModelProto, tmp_path: Path) -> None:
    """ONNX writes as much as fits and says nothing."""
    (tmp_path / "fp32.onnx").write_bytes(small.SerializeToString())
    with no_file_longer_than(400), pytest.raises(OSError, match="a temporary file was cut off") as raised:
        quantize(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", tmp_path / "ranges.json", CLIPS)
    assert raised.value.errno == errno.ENOSPC


def test_ranges_have_one_order_and_are_read_again(small: onnx.ModelProto, tmp_path: Path) -> None:
    """A head that is trained twice is the same head."""
    (tmp_path / "fp32.onnx").write_bytes(small.SerializeToString())
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    quantize(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", first, CLIPS)
    ranges = json.loads(first.read_text(encoding="utf-8"))
    second.write_text(json.dumps(dict(reversed(ranges.items()))), encoding="utf-8")
    assert ordered_ranges(first) == ordered_ranges(second)
    second.write_bytes(ordered_ranges(first))
    quantize(tmp_path / "fp32.onnx", tmp_path / "again.onnx", second)
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "int8.onnx").read_bytes()


def test_calibration_keeps_to_the_processors_of_the_process(small: onnx.ModelProto, tmp_path: Path) -> None:
    (tmp_path / "fp32.onnx").write_bytes(small.SerializeToString())
    before = affinities(os.getpid())
    found: dict[str, str] = {}

    def parts() -> Iterator[Frames]:
        """ONNX Runtime asks for them when its threads run."""
        for part in CLIPS:
            found.update(affinities(os.getpid()))
            yield part

    with on_one_processor() as ours:
        quantize(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", tmp_path / "ranges.json", parts())

    assert {found[thread] for thread in found.keys() - before.keys()} <= {ours}
