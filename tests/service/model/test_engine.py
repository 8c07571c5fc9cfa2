import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.errors import BundleError, EngineError
from service.model.bundle import Bundle, Outputs, Precision, file_sha256, load_bundle, write_manifest
from service.model.engine import Engine
from service.model.spec import CUDA
from tests.processes import affinities, on_one_processor
from tests.tiny_bundle import LABELS, tiny_network, write_tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return load_bundle(write_tiny_bundle(tmp_path))


def with_model(path: Path, content: bytes) -> Bundle:
    """A bundle whose only model file is ``content``, with a matching checksum."""
    bundle = load_bundle(write_tiny_bundle(path, precisions=["fp32"]))
    file = path / "model.fp32.onnx"
    file.write_bytes(content)
    entry = bundle.manifest.precisions["fp32"].model_copy(update={"sha256": file_sha256(file)})
    manifest = bundle.manifest.model_copy(update={"precisions": {"fp32": entry}})
    write_manifest(path, manifest)
    return load_bundle(path)


def random_clips(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 40, 224, 224, 3), np.uint8)


class TestRun:
    def test_probabilities_and_attention_maps_of_each_clip_sum_to_one(self, bundle: Bundle) -> None:
        output = Engine(bundle, device="cpu", batch_sizes=(2,)).run(list(random_clips(2)))

        assert output.attention is not None
        assert output.probabilities.shape == (2, len(LABELS))
        assert output.attention.shape == (2, 40, 7, 7)
        np.testing.assert_allclose(output.probabilities.sum(-1), 1, atol=1e-5)
        np.testing.assert_allclose(output.attention.sum((-1, -2)), 1, atol=1e-5)

    def test_the_base_variant_has_no_attention(self, tmp_path: Path) -> None:
        bundle = load_bundle(write_tiny_bundle(tmp_path, variant="base"))

        output = Engine(bundle, device="cpu").run(list(random_clips(1)))

        assert output.attention is None

    @pytest.mark.parametrize("count", [1, 2, 3, 4])
    def test_outputs_equal_those_of_onnx_runtime_whatever_the_padding(self, bundle: Bundle, count: int) -> None:
        engine = Engine(bundle, device="cpu", precision="fp32", batch_sizes=(1, 2, 4))
        clips = random_clips(count)
        session = ort.InferenceSession(bundle.model_path("fp32"), providers=["CPUExecutionProvider"])
        probabilities, attention = session.run(["probabilities", "attention"], {"frames": clips})

        engine.run(list(random_clips(4, seed=1)))
        output = engine.run(list(clips))

        assert output.attention is not None
        np.testing.assert_allclose(output.probabilities, probabilities, atol=1e-6)
        np.testing.assert_allclose(output.attention, attention, atol=1e-6)

    def test_outputs_do_not_change_in_the_next_run(self, bundle: Bundle) -> None:
        engine = Engine(bundle, device="cpu")
        first = engine.run(list(random_clips(1)))
        kept = first.probabilities.copy()

        engine.run([np.zeros((40, 224, 224, 3), np.uint8)])

        np.testing.assert_array_equal(first.probabilities, kept)

    def test_frames_may_be_read_only(self, bundle: Bundle) -> None:
        frames = random_clips(1)
        frames.setflags(write=False)

        assert len(Engine(bundle, device="cpu").run(list(frames)).probabilities) == 1

    def test_only_the_allowed_batch_sizes_ever_run(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes: list[int] = []
        run = ort.InferenceSession.run_with_iobinding

        def watched(session: Any, binding: Any, options: Any) -> None:
            run(session, binding, options)
            sizes.append(binding.get_outputs()[0].shape()[0])

        monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", watched)
        engine = Engine(bundle, device="cpu", batch_sizes=(3, 1))
        engine.warm_up()
        for count in (1, 2, 3):
            engine.run(list(random_clips(count)))

        assert sizes == [1, 3, 1, 3, 3]


class TestThreads:
    @pytest.mark.parametrize(("threads", "further"), [(0, 0), (3, 2)], ids=["default", "as set"])
    def test_they_keep_to_the_processors_of_the_process(self, bundle: Bundle, threads: int, further: int) -> None:
        """The thread that runs the network is one of them."""
        before = affinities(os.getpid())
        with on_one_processor() as ours:
            engine = Engine(bundle, device="cpu", threads=threads)
            engine.run(list(random_clips(1)))
            after = affinities(os.getpid())

        assert [after[thread] for thread in after.keys() - before.keys()] == [ours] * further


class TestPrecision:
    def test_the_chosen_precision_is_logged_once(self, bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, "service.model.engine"):
            engine = Engine(bundle, device="cpu")

        assert [record.message.split(":")[0] for record in caplog.records] == [f"precision {engine.precision}"]

    def test_a_precision_that_is_asked_for_is_used(self, bundle: Bundle) -> None:
        engine = Engine(bundle, device="cpu", precision="fp16")

        assert (engine.precision, engine.provider) == ("fp16", "CPUExecutionProvider")

    def test_a_precision_that_the_bundle_lacks_is_an_error(self, tmp_path: Path) -> None:
        bundle = load_bundle(write_tiny_bundle(tmp_path, precisions=["fp32"]))

        with pytest.raises(EngineError, match=r"manifest\.json lists no int8 file, only fp32; set LIMELIGHT_PRECISION"):
            Engine(bundle, device="cpu", precision="int8")


class TestDevice:
    def test_cuda_is_an_error_if_onnx_runtime_is_built_without_it(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])

        with pytest.raises(EngineError, match="LIMELIGHT_DEVICE=cpu"):
            Engine(bundle, device="cuda")

    @pytest.fixture
    def promised_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """ONNX Runtime lists CUDA but opens its sessions on the CPU, as it does without a driver."""
        load = ort.InferenceSession
        monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
        monkeypatch.setattr(ort, "preload_dlls", lambda: None)
        monkeypatch.setattr(
            ort, "InferenceSession", lambda path, options, providers: load(path, options, ["CPUExecutionProvider"])
        )

    @pytest.mark.usefixtures("promised_cuda")
    def test_cuda_is_an_error_if_the_session_runs_on_the_cpu(self, bundle: Bundle) -> None:
        with pytest.raises(EngineError, match="LIMELIGHT_DEVICE=cpu"):
            Engine(bundle, device="cuda")

    @pytest.mark.usefixtures("promised_cuda")
    def test_auto_falls_back_to_the_cpu_with_a_warning(self, bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
        engine = Engine(bundle, device="auto")

        assert engine.provider == "CPUExecutionProvider"
        assert engine.precision != "fp16"
        assert "CUDA is compiled in but does not work here" in caplog.text


class TestCudaPath:
    """The code for CUDA, run with the CPU provider in place of the GPU."""

    @pytest.fixture
    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        load, from_numpy = ort.InferenceSession, ort.OrtValue.ortvalue_from_numpy
        empty = ort.OrtValue.ortvalue_from_shape_and_type

        def session(path: Path, options: Any, providers: list[Any]) -> Any:
            opened = load(path, options, ["CPUExecutionProvider"])
            opened.get_providers = lambda: [provider[0] for provider in providers[:1]]
            return opened

        monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
        monkeypatch.setattr(ort, "preload_dlls", lambda: None)
        monkeypatch.setattr(ort, "InferenceSession", session)
        monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", lambda array, device: from_numpy(array.copy()))
        monkeypatch.setattr(
            ort.OrtValue, "ortvalue_from_shape_and_type", lambda shape, dtype, device: empty(shape, dtype)
        )

    @pytest.mark.usefixtures("stand_in")
    def test_each_batch_is_copied_to_the_device_and_its_outputs_back(self, bundle: Bundle) -> None:
        engine = Engine(bundle, device="cuda", batch_sizes=None)
        clips = random_clips(3)

        answers = [engine.run(list(clips)).probabilities, engine.run(list(clips[::-1])).probabilities]

        assert (engine.precision, engine.provider, engine.batch_sizes) == ("fp16", CUDA, (1, 2, 4, 8))
        np.testing.assert_allclose(answers[0], answers[1][::-1], atol=1e-6)
        assert not np.allclose(answers[0][0], answers[0][1], atol=1e-6)

    @pytest.mark.usefixtures("stand_in")
    def test_an_input_buffer_that_cannot_be_pinned_is_logged(
        self, bundle: Bundle, caplog: pytest.LogCaptureFixture
    ) -> None:
        Engine(bundle, device="cuda")

        assert "cannot be pinned" in caplog.text


class TestOverflow:
    """A network that overflows returns numbers that are none."""

    @pytest.mark.parametrize("size", [1, 3])
    def test_warming_up_finds_it(self, tmp_path: Path, size: int) -> None:
        bundle = load_bundle(write_tiny_bundle(tmp_path, overflow_above=0.4))
        engine = Engine(bundle, device="cpu", precision="fp16", batch_sizes=(size,))

        with pytest.raises(EngineError, match=r"model\.fp16\.onnx overflows on CPU.*; choose another precision"):
            engine.warm_up()

    def test_a_network_that_needs_a_clip_brighter_than_any_warms_up(self, tmp_path: Path) -> None:
        bundle = load_bundle(write_tiny_bundle(tmp_path, overflow_above=0.8))
        engine = Engine(bundle, device="cpu", batch_sizes=(2,))
        engine.warm_up()

        outputs = engine.run([np.full((40, 224, 224, 3), brightness, np.uint8) for brightness in (255, 0)])

        assert [outputs[row].finite for row in range(2)] == [False, True]
        assert not outputs.finite

    def test_outputs_are_finite_only_if_the_attention_is(self) -> None:
        probabilities, attention = np.ones((1, 2), np.float32), np.ones((1, 40, 7, 7), np.float32)

        assert Outputs(probabilities, attention).finite
        assert Outputs(probabilities, None).finite
        attention[0, 39, 6, 6] = np.inf
        assert not Outputs(probabilities, attention).finite


class TestBadModel:
    def test_the_bytes_that_were_checked_are_those_that_run(self, tmp_path: Path) -> None:
        bundle = load_bundle(write_tiny_bundle(tmp_path))
        write_tiny_bundle(tmp_path, seed=1)

        with pytest.raises(BundleError, match=r"onnx is damaged"):
            Engine(bundle, device="cpu")

    def test_weights_in_another_file_are_refused_because_they_have_no_checksum(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "model.fp32.onnx"
        onnx.save_model(
            tiny_network(len(LABELS)), file, save_as_external_data=True, location="weights", size_threshold=500
        )
        bundle = with_model(tmp_path, file.read_bytes())
        monkeypatch.chdir(tmp_path)

        assert (tmp_path / "weights").exists()
        with pytest.raises(EngineError, match=r"model\.fp32\.onnx cannot be loaded"):
            Engine(bundle, device="cpu")

    def test_the_files_content_is_not_kept(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        contents = []
        read = Bundle.read_model

        def watched(bundle: Bundle, precision: Precision) -> bytes:
            contents.append(read(bundle, precision))
            return contents[-1]

        monkeypatch.setattr(Bundle, "read_model", watched)
        engine = Engine(bundle, device="cpu")
        (content,) = contents
        contents.clear()

        assert engine.precision
        assert sys.getrefcount(content) == 2  # this function's variable and the argument

    def test_a_file_that_is_not_onnx_is_an_error_naming_the_file(self, tmp_path: Path) -> None:
        bundle = with_model(tmp_path, b"not a model")

        with pytest.raises(EngineError, match=r"model\.fp32\.onnx cannot be loaded .*; export the bundle again"):
            Engine(bundle, device="cpu")

    def test_an_attention_bundle_whose_network_lacks_attention_is_refused(self, tmp_path: Path) -> None:
        bundle = with_model(tmp_path, tiny_network(len(LABELS), attention=False).SerializeToString())

        with pytest.raises(EngineError, match=r"model\.fp32\.onnx lacks the output attention; export"):
            Engine(bundle, device="cpu")

    def test_a_network_with_other_inputs_is_refused(self, tmp_path: Path) -> None:
        bundle = with_model(tmp_path, _renamed_input().SerializeToString())

        with pytest.raises(EngineError, match="must have `frames` as its only input"):
            Engine(bundle, device="cpu")

    def test_a_network_with_another_number_of_classes_than_labels_is_refused(self, tmp_path: Path) -> None:
        bundle = with_model(tmp_path, tiny_network(3).SerializeToString())

        with pytest.raises(EngineError, match=r"has 3 classes, but manifest\.json has 6 labels"):
            Engine(bundle, device="cpu")

    @pytest.mark.parametrize("one_for_all", ["ReduceSum", "SequenceConstruct"])
    def test_a_network_without_a_row_for_each_clip_is_refused(self, tmp_path: Path, one_for_all: str) -> None:
        bundle = with_model(tmp_path, _output_without_axes(one_for_all).SerializeToString())

        with pytest.raises(EngineError, match=f"{tmp_path}.*cannot run a batch of 1.*export the bundle again"):
            Engine(bundle, device="cpu").warm_up()

    def test_a_network_that_cannot_run_fails_while_warming_up(self, tmp_path: Path) -> None:
        bundle = with_model(tmp_path, _fixed_batch_of_two().SerializeToString())

        with pytest.raises(EngineError, match=r"model\.fp32\.onnx cannot run a batch of 1"):
            Engine(bundle, device="cpu").warm_up()

    @pytest.mark.parametrize("flaw", ["a constant that is not used", "a batch that cannot run"])
    def test_onnx_runtime_writes_nothing_because_it_would_wait_for_a_reader(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str], flaw: str
    ) -> None:
        model = tiny_network(len(LABELS))
        if flaw == "a constant that is not used":
            model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "unused"))
        else:
            maps = next(constant for constant in model.graph.initializer if constant.name == "to_maps")
            maps.CopyFrom(numpy_helper.from_array(np.array([0, 40, 7, 8], np.int64), "to_maps"))
        engine = Engine(with_model(tmp_path, model.SerializeToString()), device="cpu")
        with contextlib.suppress(EngineError):
            engine.warm_up()

        assert capfd.readouterr() == ("", "")


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


def _output_without_axes(operator: str) -> onnx.ModelProto:
    model = tiny_network(len(LABELS))
    softmax = next(node for node in model.graph.node if "probabilities" in node.output)
    softmax.output[0] = "rows_of_classes"
    model.graph.node.append(helper.make_node(operator, ["rows_of_classes"], ["probabilities"]))
    if operator == "ReduceSum":
        model.graph.node[-1].attribute.append(helper.make_attribute("keepdims", 0))
        output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [])
    else:
        output = helper.make_tensor_sequence_value_info("probabilities", TensorProto.FLOAT, None)
    model.graph.output[0].CopyFrom(output)
    return model
