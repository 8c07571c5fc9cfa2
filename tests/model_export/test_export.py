import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from model_export import export
from model_export.data.encoders import keras_encoder
from model_export.errors import ExportError, HeadError
from model_export.export import ExportCheck, _clear, _recover, export_bundle
from model_export.head import TrainedHead, load_head
from model_export.network.arrays import Frames, largest_difference, predictor
from model_export.network.float16 import Measured, measured_encoder
from model_export.quantize import QUANTIZER_REVISION
from model_export.reporter import Reporter
from model_export.verify import OnnxNetwork, record_agreement
from service import files
from service.files import locked
from service.model.bundle import Agreement, load_bundle
from tests.model_export.conftest import NARROW
from tests.model_export.reporting import Recording


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


@pytest.fixture
def exported(narrow_head: Path, narrow_bundle: Path, tmp_path: Path) -> tuple[TrainedHead, Path]:
    """A head and its bundle, to change."""
    shutil.copytree(narrow_head, tmp_path / "head")
    return load_head(tmp_path / "head"), Path(shutil.copytree(narrow_bundle, tmp_path / "bundle"))


def measured(n: int = 9, difference: float = 0.1) -> Agreement:
    return Agreement(top1=1.0, n=n, low=0.7, high=1.0, max_abs_difference=difference, device="here")


def record(head: TrainedHead, agreement: Agreement, quantizer: int = QUANTIZER_REVISION) -> None:
    head.record_agreement({"int8": agreement}, quantizer, head.sha256())


def recorded(bundle: Path) -> Agreement | None:
    return load_bundle(bundle).manifest.precisions["int8"].agreement


def test_agreement_measured_later_is_added_to_a_bundle_that_is_up_to_date(exported: tuple[TrainedHead, Path]) -> None:
    head, bundle = exported
    record(head, measured())
    assert not export_bundle(head, None, bundle, filters=NARROW)
    assert recorded(bundle) == measured()
    assert load_bundle(bundle).manifest.precisions["fp32"].agreement is None


def test_agreement_measured_on_the_bundle_itself_is_kept(exported: tuple[TrainedHead, Path]) -> None:
    head, bundle = exported
    record_agreement({"int8": measured(n=500)}, load_bundle(bundle))
    record(head, measured(n=9))
    assert not export_bundle(head, None, bundle, filters=NARROW)
    assert recorded(bundle) == measured(n=500)


@pytest.mark.usefixtures("quick_export", "quick_check")
@pytest.mark.parametrize("force", [False, True], ids=("a bundle that is up to date", "a new bundle"))
def test_agreement_of_another_quantizer_is_not_used(exported: tuple[TrainedHead, Path], force: bool) -> None:
    head, bundle = exported
    record(head, measured(), QUANTIZER_REVISION - 1)
    assert export_bundle(head, None, bundle, filters=NARROW, force=force) is force
    assert recorded(bundle) is None


@pytest.mark.usefixtures("quick_export", "quick_check")
@pytest.mark.parametrize("difference", [0.024, 0.026])
def test_agreement_is_left_out_if_the_rendered_clips_differ_by_much_more(
    exported: tuple[TrainedHead, Path], difference: float
) -> None:
    head, bundle = exported
    record(head, measured(difference=difference))
    for force in (True, False):  # a new bundle, and one that is up to date
        reporter = Recording()
        assert export_bundle(head, None, bundle, filters=NARROW, force=force, reporter=reporter) is force
        said = "recorded agreement of int8 is left out, because it differs by 5.0e-02" in str(reporter.lines)
        assert said is (difference < 0.025)
        assert recorded(bundle) == (None if said else measured(difference=difference))


@pytest.mark.usefixtures("quick_export")
@pytest.mark.ci
def test_agreement_is_left_out_if_a_ruined_file_names_another_class(
    exported: tuple[TrainedHead, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    head, bundle = exported
    record(head, measured())
    write_models = export._write_models

    def ruin(head: TrainedHead, weights: None, filters: export.Filters, folder: Path, reporter: Reporter) -> None:
        write_models(head, weights, filters, folder, reporter)
        model = onnx.load(folder / "model.int8.onnx")
        (softmax,) = (node for node in model.graph.node if "probabilities" in node.output)
        softmax.output[0] = "ruined"
        model.graph.node.append(onnx.helper.make_node("Sub", ["one", "ruined"], ["probabilities"]))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1, np.float32), "one"))
        onnx.save(model, folder / "model.int8.onnx")

    monkeypatch.setattr(export, "_write_models", ruin)
    reporter = Recording()
    assert export_bundle(head, None, bundle, filters=NARROW, force=True, reporter=reporter)
    assert recorded(bundle) is None
    assert "left out, because it names another class than Keras on a rendered clip" in str(reporter.lines)


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize("ordinary", [True, False], ids=("ordinary clips", "the crafted frame only"))
@pytest.mark.ci
def test_an_overflow_in_float16_is_stated_and_costs_the_fp16_file_only_on_ordinary_clips(
    narrow_head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ordinary: bool
) -> None:
    def overflowing(encoder: object, *, float16: bool = False) -> Callable[[Frames], Measured]:
        measured = measured_encoder(encoder)

        def encode(frames: Frames) -> Measured:
            found = measured(frames)
            if float16 and (len(frames) == 40) is ordinary:
                return Measured(found.cuboids * np.nan, found.peaks | {"block4_conv1": np.inf})
            return found

        return encode

    monkeypatch.setattr(export, "measured_encoder", overflowing)
    reporter = Recording()
    assert export_bundle(load_head(narrow_head), None, tmp_path / "bundle", filters=NARROW, reporter=reporter)
    manifest = load_bundle(tmp_path / "bundle").manifest
    check = manifest.training["export_check"]
    shown = ["jumping_jacks", "waving"] if ordinary else ["a crafted frame"]
    assert check["float16_overflow"] == dict.fromkeys(shown, "block4_conv1")
    assert all(f"checking: float16 overflows in block4_conv1 for {name}" in reporter.lines for name in shown)
    assert ("fp16" in manifest.precisions) is (tmp_path / "bundle" / "model.fp16.onnx").exists() is not ordinary
    assert ("fp16 file" in str(reporter.lines)) is ordinary


def test_the_manifest_states_the_largest_activation_of_each_layer(narrow_bundle: Path) -> None:
    check = load_bundle(narrow_bundle).manifest.training["export_check"]
    assert list(check["largest_activation"]) == ["jumping_jacks", "waving", "a crafted frame"]
    assert all(len(layers) == 16 and min(layers.values()) >= 0 for layers in check["largest_activation"].values())
    assert check["float16_overflow"] == {}
    assert check["outcome"].keys() == {"fp32", "fp16", "int8"}


@pytest.mark.usefixtures("quick_export", "quick_check")
def test_a_bundle_that_is_a_link_stays_one(exported: tuple[TrainedHead, Path], tmp_path: Path) -> None:
    head, bundle = exported
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "current"
    link.symlink_to(bundle)
    (bundle / "model.int8.onnx").write_bytes(b"no model")
    assert export_bundle(head, None, link, filters=NARROW)
    assert link.readlink() == bundle
    load_bundle(bundle)
    assert [path.name for path in (tmp_path / "links").iterdir()] == ["current"]
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "head", "links"}


@pytest.mark.usefixtures("quick_export", "quick_check")
def test_a_link_to_a_folder_that_does_not_exist_is_filled(narrow_head: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(tmp_path / "versions" / "1")
    assert export_bundle(load_head(narrow_head), None, tmp_path / "current", filters=NARROW)
    assert (tmp_path / "current").is_symlink()
    load_bundle(tmp_path / "versions" / "1")


@pytest.mark.usefixtures("quick_export", "quick_check")
@pytest.mark.parametrize("fails", ["new", "new old"], ids=("the second rename", "and putting the old one back"))
def test_neither_bundle_is_lost_if_renaming_fails(
    exported: tuple[TrainedHead, Path], monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    head, bundle = exported
    before = (bundle / "manifest.json").read_bytes()
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name in fails.split():
            raise OSError(5, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_exchange", lambda a, b: False)
        patch.setattr(Path, "rename", fail)
        with pytest.raises(ExportError, match=r"was not written .*Input/output error"):
            export_bundle(head, None, bundle, filters=NARROW, force=True)
    reporter = Recording()
    assert not export_bundle(head, None, bundle, filters=NARROW, reporter=reporter)
    assert ("is as it was before" in str(reporter.lines)) is (fails == "new old")
    assert (bundle / "manifest.json").read_bytes() == before
    assert {path.name for path in bundle.parent.iterdir()} == {"bundle", "head"}


def test_the_bundle_is_put_back_after_an_export_that_was_killed_between_the_renames(
    exported: tuple[TrainedHead, Path],
) -> None:
    head, bundle = exported
    work = bundle.parent / ".bundle-a1b2c3_d"
    (work / "new").mkdir(parents=True)
    (work / "lock").touch()
    bundle.rename(work / "old")
    assert not export_bundle(head, None, bundle, filters=NARROW)
    load_bundle(bundle)
    assert not work.exists()


def test_the_work_of_an_export_that_runs_and_folders_of_others_are_left_alone(
    exported: tuple[TrainedHead, Path],
) -> None:
    head, bundle = exported
    running = bundle.parent / ".bundle-a1b2c3_d"
    for folder in (running, bundle.parent / ".bundle-other-a1b2c3_d", bundle.parent / ".bundle-12345678"):
        (folder / "new").mkdir(parents=True)
    (running / "lock").touch()
    with locked(running / "lock"):
        assert not export_bundle(head, None, bundle, filters=NARROW)
    assert len(list(bundle.parent.glob(".bundle-*/new"))) == 3


@pytest.mark.usefixtures("quick_export", "quick_check")
def test_the_work_of_an_export_that_begins_is_left_alone(
    exported: tuple[TrainedHead, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    head, bundle = exported
    touch, other = Path.touch, threading.Thread(target=_recover, args=(bundle, Recording()))

    def touch_and_let_another_export_begin(file: Path, **options: Any) -> None:
        touch(file, **options)
        if file.name == "lock":
            other.start()
            other.join(0.2)

    monkeypatch.setattr(Path, "touch", touch_and_let_another_export_begin)
    assert export_bundle(head, None, bundle, filters=NARROW, force=True)
    other.join()


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize("force", [False, True])
def test_a_file_that_arrives_while_the_bundle_is_exported_is_kept(
    exported: tuple[TrainedHead, Path], monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    head, bundle = exported
    (bundle / "model.int8.onnx").write_bytes(b"no model")

    def check(*_: object) -> ExportCheck:
        (bundle / "notes.txt").touch()
        return ExportCheck({"fp32": ("agrees", 0.0)})

    monkeypatch.setattr(export, "_check", check)
    with pytest.raises(ExportError, match="is not a bundle"):
        export_bundle(head, None, bundle, filters=NARROW, force=force)
    assert (bundle / "notes.txt").exists()
    assert {path.name for path in bundle.parent.iterdir()} == {"bundle", "head"}


def test_work_is_removed_before_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, unlink = tmp_path / ".bundle-a1b2c3_d", os.unlink
    (work / "new").mkdir(parents=True)
    for file in (work / "lock", work / "new" / "model.fp32.onnx"):
        file.touch()
    removed = []

    def note(path: str, **options: int) -> None:
        removed.append(Path(path).name)
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", note)
    _clear(work, tmp_path / "bundle")
    assert removed == ["model.fp32.onnx", "lock"]
    assert not work.exists()


def test_a_mount_point_is_refused_before_any_work(
    exported: tuple[TrainedHead, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    head, bundle = exported
    monkeypatch.setattr(Path, "is_mount", lambda self: self == bundle)
    with pytest.raises(
        ExportError, match=r"is a mount point, .* choose a folder inside it, such as --output .*/bundle"
    ):
        export_bundle(head, None, bundle, filters=NARROW, force=True)


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
        ExportError, match=r"bundle was not written because the disk is full .*free \d+ MiB there, or choose another"
    ):
        export_bundle(load_head(narrow_head), None, kept, filters=NARROW, force=True)
    load_bundle(kept)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_too_little_disk_space_is_reported_before_any_work(
    narrow_head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "SPARE_BYTES", 1 << 60)
    with pytest.raises(ExportError, match=r"only .* MiB are free"):
        export_bundle(load_head(narrow_head), None, tmp_path / "bundle", filters=NARROW)


def test_what_is_not_a_bundle_is_never_overwritten(narrow_head: Path, tmp_path: Path) -> None:
    video = tmp_path / "holiday.mp4"
    video.touch()
    for output in (tmp_path, video):
        with pytest.raises(ExportError, match="is not a bundle"):
            export_bundle(load_head(narrow_head), None, output, filters=NARROW)
    assert video.exists()


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
