import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from model_export import export
from model_export.data.encoders import keras_encoder
from model_export.errors import ExportError, HeadError
from model_export.export import export_bundle
from model_export.head import load_head
from model_export.network.arrays import largest_difference, predictor
from model_export.verify import OnnxNetwork
from service.model.bundle import Agreement, load_bundle
from tests.model_export.conftest import NARROW


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_the_bundle_is_complete_and_described_by_its_manifest(narrow_bundle: Path) -> None:
    manifest = load_bundle(narrow_bundle).manifest
    assert manifest.name == "narrow"
    assert manifest.version == "7"
    assert manifest.labels == ["JumpingJack", "PullUps", "Surfing"]
    assert set(manifest.precisions) == {"fp32", "fp16", "int8"}
    assert manifest.training["readout"] == "last"
    assert json.loads((narrow_bundle / "manifest.json").read_text(encoding="utf-8"))["schema"] == 1


@pytest.mark.parametrize("precision", ("fp32", "fp16", "int8"))
def test_every_precision_has_the_contracts_inputs_and_outputs(narrow_bundle: Path, precision: str) -> None:
    graph = onnx.load(narrow_bundle / f"model.{precision}.onnx").graph

    def signature(values: object) -> dict[str, tuple[int, list[int | str]]]:
        return {
            value.name: (
                value.type.tensor_type.elem_type,
                [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
            )
            for value in values  # type: ignore[attr-defined]
        }

    assert signature(graph.input) == {"frames": (onnx.TensorProto.UINT8, ["batch", 40, 224, 224, 3])}
    assert signature(graph.output) == {
        "probabilities": (onnx.TensorProto.FLOAT, ["batch", 3]),
        "attention": (onnx.TensorProto.FLOAT, ["batch", 40, 7, 7]),
    }


@pytest.mark.parametrize("precision", ("fp32", "fp16", "int8"))
def test_every_precision_has_sixteen_convolutions_and_no_loop(narrow_bundle: Path, precision: str) -> None:
    count = operators(narrow_bundle / f"model.{precision}.onnx")
    assert not count.keys() & {"Loop", "If", "Scan"}
    assert count["Conv"] == 16


def test_fp16_runs_convolutions_in_float16_and_casts_only_around_them(narrow_bundle: Path) -> None:
    graph = onnx.load(narrow_bundle / "model.fp16.onnx").graph
    types = {initializer.name: initializer.data_type for initializer in graph.initializer}
    kernels = [node.input[1] for node in graph.node if node.op_type == "Conv"]
    assert [types[kernel] for kernel in kernels] == [onnx.TensorProto.FLOAT16] * 16
    assert operators(narrow_bundle / "model.fp16.onnx")["Cast"] < 10


def test_int8_quantizes_input_and_kernel_of_every_convolution(narrow_bundle: Path) -> None:
    graph = onnx.load(narrow_bundle / "model.int8.onnx").graph
    made_by = {output: node for node in graph.node for output in node.output}
    types = {initializer.name: initializer.data_type for initializer in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    for node in convolutions:
        activation, kernel = (made_by[name] for name in node.input[:2])
        assert activation.op_type == kernel.op_type == "DequantizeLinear"
        assert types[kernel.input[0]] == onnx.TensorProto.INT8
        assert types[kernel.input[1]] == onnx.TensorProto.FLOAT, "a scale"
    assert len(convolutions) == 16


def test_fp32_agrees_with_keras_for_a_batch_of_clips(
    narrow_bundle: Path, narrow_head: Path, narrow_encoder: object, rendered_frames: list[npt.NDArray[np.uint8]]
) -> None:
    encode, predict = keras_encoder(narrow_encoder), predictor(load_head(narrow_head).build())
    found = OnnxNetwork(narrow_bundle / "model.fp32.onnx")(np.stack(rendered_frames))
    expected = predict(np.stack([encode(frames) for frames in rendered_frames]))
    assert found.probabilities.shape == (2, 3)
    assert largest_difference(found, expected) < 1e-5


def test_a_bundle_that_is_up_to_date_is_not_written_again(narrow_head: Path, narrow_bundle: Path) -> None:
    before = (narrow_bundle / "manifest.json").stat()
    assert not export_bundle(load_head(narrow_head), None, narrow_bundle, filters=NARROW)
    assert (narrow_bundle / "manifest.json").stat() == before


def test_agreement_measured_later_is_added_to_a_bundle_that_is_up_to_date(
    narrow_head: Path, narrow_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(narrow_head, tmp_path / "head")
    shutil.copytree(narrow_bundle, tmp_path / "bundle")
    head = load_head(tmp_path / "head")
    measured = Agreement(top1=1.0, n=9, low=0.7, high=1.0, max_abs_difference=0.1, device="here")
    head.record_agreement({"int8": measured})
    assert not export_bundle(head, None, tmp_path / "bundle", filters=NARROW)
    precisions = load_bundle(tmp_path / "bundle").manifest.precisions
    assert precisions["int8"].agreement == measured
    assert precisions["fp32"].agreement is None


@pytest.mark.usefixtures("quick_export")
def test_a_damaged_bundle_is_replaced(narrow_head: Path, narrow_bundle: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "bundle"
    shutil.copytree(narrow_bundle, damaged)
    (damaged / "model.int8.onnx").write_bytes(b"no model")
    assert export_bundle(load_head(narrow_head), None, damaged, filters=NARROW)
    load_bundle(damaged)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"], "nothing else is left behind"


@pytest.mark.usefixtures("quick_export")
def test_a_precision_that_differs_from_keras_is_refused(
    narrow_head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "TOLERANCE", 0.0)
    with pytest.raises(ExportError, match=r"model.fp32.onnx differs from Keras by .*so no bundle was written"):
        export_bundle(load_head(narrow_head), None, tmp_path / "bundle", filters=NARROW)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_bundle_unchanged(
    narrow_head: Path, narrow_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "bundle"
    shutil.copytree(narrow_bundle, kept)

    def disk_fills_up(head: object, weights: object, filters: object, folder: Path, reporter: object) -> None:
        (folder / "model.fp32.onnx").write_bytes(b"part of a model")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "_write_models", disk_fills_up)
    with pytest.raises(
        ExportError, match=r"bundle was not written because the disk is full .*free \d+ MiB or choose another"
    ):
        export_bundle(load_head(narrow_head), None, kept, filters=NARROW, force=True)
    load_bundle(kept)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_too_little_disk_space_is_reported_before_any_work(
    narrow_head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "DISK_BYTES", 1 << 60)
    with pytest.raises(ExportError, match=r"only .* MiB are free"):
        export_bundle(load_head(narrow_head), None, tmp_path / "bundle", filters=NARROW)


def test_a_folder_that_is_not_a_bundle_is_never_overwritten(narrow_head: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.mp4").touch()
    with pytest.raises(ExportError, match="is not a bundle"):
        export_bundle(load_head(narrow_head), None, tmp_path, filters=NARROW)
    assert (tmp_path / "holiday.mp4").exists()


def test_a_head_without_calibration_ranges_is_refused(narrow_head: Path, tmp_path: Path) -> None:
    shutil.copytree(narrow_head, tmp_path / "head")
    (tmp_path / "head" / "calibration.json").unlink()
    with pytest.raises(ExportError, match=r"calibration.json is missing"):
        export_bundle(load_head(tmp_path / "head"), None, tmp_path / "bundle", filters=NARROW)


@pytest.mark.parametrize(
    ("damage", "message"),
    (
        (lambda path: (path / "head.json").unlink(), r"head.json cannot be read"),
        (lambda path: (path / "head.json").write_text("{}", encoding="utf-8"), r"head.json is not valid"),
        (lambda path: (path / "head.weights.h5").write_bytes(b"zero"), r"head.weights.h5 does not hold"),
        (lambda path: (path / "head.weights.h5").unlink(), r"head.weights.h5 does not hold"),
    ),
)
def test_a_damaged_head_is_named(narrow_head: Path, tmp_path: Path, damage: object, message: str) -> None:
    shutil.copytree(narrow_head, tmp_path / "head")
    damage(tmp_path / "head")  # type: ignore[operator]
    with pytest.raises(HeadError, match=message):
        load_head(tmp_path / "head").build()
