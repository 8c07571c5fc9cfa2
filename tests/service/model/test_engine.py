import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from service.model.bundle import Bundle, file_sha256, load_bundle, write_manifest
from service.model.engine import CUDA, Engine, EngineError, EngineOutput, choose_precision, has_vnni
from tests.tiny_bundle import LABELS, tiny_network, write_tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return load_bundle(write_tiny_bundle(tmp_path))


def with_model(path: Path, content: bytes) -> Bundle:
    """A bundle whose only model is `content`, with a manifest that stands by it."""
    bundle = load_bundle(write_tiny_bundle(path, precisions=["fp32"]))
    file = path / "model.fp32.onnx"
    file.write_bytes(content)
    entry = bundle.manifest.precisions["fp32"].model_copy(update={"sha256": file_sha256(file)})
    manifest = bundle.manifest.model_copy(update={"precisions": {"fp32": entry}})
    write_manifest(path, manifest)
    return load_bundle(path)


class TestRun:
    def test_answers_each_clip_with_probabilities_and_maps_that_sum_to_one(self, bundle: Bundle) -> None:
        frames = np.random.default_rng(0).integers(0, 256, (2, 40, 224, 224, 3), np.uint8)

        output = Engine(bundle, device="cpu").run(frames)

        assert output.attention is not None
        assert output.probabilities.shape == (2, len(LABELS))
        assert output.attention.shape == (2, 40, 7, 7)
        np.testing.assert_allclose(output.probabilities.sum(-1), 1, atol=1e-5)
        np.testing.assert_allclose(output.attention.sum((-1, -2)), 1, atol=1e-5)

    def test_the_base_variant_has_no_attention(self, tmp_path: Path) -> None:
        bundle = load_bundle(write_tiny_bundle(tmp_path, variant="base"))

        output = Engine(bundle, device="cpu").run(np.zeros((1, 40, 224, 224, 3), np.uint8))

        assert output.attention is None

    def test_warming_up_runs_every_batch_size(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        engine = Engine(bundle, device="cpu", batch_sizes=(1, 3))
        run = engine.run
        sizes: list[int] = []

        def watched(frames: npt.NDArray[np.uint8]) -> EngineOutput:
            sizes.append(len(frames))
            return run(frames)

        monkeypatch.setattr(engine, "run", watched)
        engine.warm_up()

        assert sizes == [1, 3]

    def test_on_cpu_batches_hold_one_clip_unless_told_otherwise(self, bundle: Bundle) -> None:
        assert Engine(bundle, device="cpu", batch_sizes=None).batch_sizes == (1,)


class TestPrecision:
    def test_cuda_takes_fp16(self, bundle: Bundle) -> None:
        assert choose_precision(bundle.manifest, on_cuda=True, vnni=True)[0] == "fp16"

    def test_a_processor_with_vnni_takes_int8_that_agrees(self, bundle: Bundle) -> None:
        assert choose_precision(bundle.manifest, on_cuda=False, vnni=True)[0] == "int8"

    def test_a_processor_without_vnni_takes_fp32(self, bundle: Bundle) -> None:
        precision, reason = choose_precision(bundle.manifest, on_cuda=False, vnni=False)

        assert precision == "fp32"
        assert "VNNI" in reason

    @pytest.mark.parametrize(("top1", "chosen"), [(0.98, "int8"), (0.979, "fp32"), (None, "fp32")])
    def test_int8_needs_recorded_agreement_of_98_percent(self, tmp_path: Path, top1: float | None, chosen: str) -> None:
        manifest = load_bundle(write_tiny_bundle(tmp_path, int8_top1=top1)).manifest

        assert choose_precision(manifest, on_cuda=False, vnni=True)[0] == chosen

    def test_a_bundle_without_int8_is_served_in_fp32(self, tmp_path: Path) -> None:
        manifest = load_bundle(write_tiny_bundle(tmp_path, precisions=["fp32"])).manifest

        assert choose_precision(manifest, on_cuda=False, vnni=True)[0] == "fp32"

    def test_the_choice_is_said_once_in_the_log(self, bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, "service.model.engine"):
            engine = Engine(bundle, device="cpu")

        assert [record.message.split(":")[0] for record in caplog.records] == [f"precision {engine.precision}"]

    def test_what_is_asked_for_is_taken(self, bundle: Bundle) -> None:
        engine = Engine(bundle, device="cpu", precision="fp16")

        assert (engine.precision, engine.provider) == ("fp16", "CPUExecutionProvider")

    def test_a_precision_that_the_bundle_lacks_is_an_error(self, tmp_path: Path) -> None:
        bundle = load_bundle(write_tiny_bundle(tmp_path, precisions=["fp32"]))

        with pytest.raises(EngineError, match=r"manifest\.json lists no int8 file, only fp32; set LIMELIGHT_PRECISION"):
            Engine(bundle, device="cpu", precision="int8")

    @pytest.mark.parametrize(
        ("flags", "answer"), [("fma avx2 avx512_vnni", True), ("fma avx_vnni", True), ("avx2 avx512f", False)]
    )
    def test_vnni_is_read_off_the_processor_flags(self, tmp_path: Path, flags: str, answer: bool) -> None:
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text(f"processor\t: 0\nflags\t\t: fpu {flags} rdpid\nbugs\t\t: none\n")

        assert has_vnni(cpuinfo) is answer

    def test_an_unreadable_cpuinfo_means_no_vnni(self, tmp_path: Path) -> None:
        assert not has_vnni(tmp_path / "none")


class TestDevice:
    def test_cuda_is_an_error_where_onnx_runtime_has_none(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])

        with pytest.raises(EngineError, match="LIMELIGHT_DEVICE=cpu"):
            Engine(bundle, device="cuda")

    @pytest.fixture
    def promised_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An ONNX Runtime that lists CUDA and gives a session without it, as one without a driver does."""
        load = ort.InferenceSession
        monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
        monkeypatch.setattr(ort, "preload_dlls", lambda: None)
        monkeypatch.setattr(
            ort, "InferenceSession", lambda path, options, providers: load(path, options, ["CPUExecutionProvider"])
        )

    @pytest.mark.usefixtures("promised_cuda")
    def test_cuda_never_falls_back_in_silence(self, bundle: Bundle) -> None:
        with pytest.raises(EngineError, match="LIMELIGHT_DEVICE=cpu"):
            Engine(bundle, device="cuda")

    @pytest.mark.usefixtures("promised_cuda")
    def test_auto_goes_to_the_cpu_and_says_so(self, bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
        engine = Engine(bundle, device="auto")

        assert engine.provider == "CPUExecutionProvider"
        assert engine.precision != "fp16"
        assert "CUDA is compiled in but does not work here" in caplog.text


class TestBadModel:
    def test_what_is_not_onnx_is_an_error_naming_the_file(self, tmp_path: Path) -> None:
        bundle = with_model(tmp_path, b"not a model")

        with pytest.raises(EngineError, match=r"model\.fp32\.onnx cannot be loaded .*; export the bundle again"):
            Engine(bundle, device="cpu")

    def test_a_network_without_attention_is_not_the_attention_variant(self, tmp_path: Path) -> None:
        bundle = with_model(tmp_path, tiny_network(len(LABELS), attention=False).SerializeToString())

        with pytest.raises(EngineError, match=r"model\.fp32\.onnx lacks the output attention; export"):
            Engine(bundle, device="cpu")

    def test_a_network_with_other_inputs_is_refused(self, tmp_path: Path) -> None:
        bundle = with_model(tmp_path, _renamed_input().SerializeToString())

        with pytest.raises(EngineError, match="does not take `frames` alone"):
            Engine(bundle, device="cpu")

    def test_as_many_labels_as_classes(self, tmp_path: Path) -> None:
        bundle = with_model(tmp_path, tiny_network(3).SerializeToString())

        with pytest.raises(EngineError, match=r"answers 3 classes where manifest\.json has 6 labels"):
            Engine(bundle, device="cpu").warm_up()

    def test_a_network_that_cannot_run_is_found_while_warming_up(self, tmp_path: Path) -> None:
        bundle = with_model(tmp_path, _fixed_batch_of_two().SerializeToString())

        with pytest.raises(EngineError, match=r"model\.fp32\.onnx cannot run a batch of 1"):
            Engine(bundle, device="cpu").warm_up()


def _renamed_input() -> onnx.ModelProto:
    model = tiny_network(len(LABELS))
    model.graph.input[0].name = "images"
    model.graph.node[0].input[0] = "images"
    return model


def _fixed_batch_of_two() -> onnx.ModelProto:
    model = tiny_network(len(LABELS))
    frames = helper.make_tensor_value_info("frames", TensorProto.UINT8, [2, 40, 224, 224, 3])
    model.graph.input[0].CopyFrom(frames)
    return model
