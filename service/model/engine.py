"""Runs a bundle's network: the ONNX Runtime session, and the buffers that it reads and writes."""

import contextlib
import ctypes
import logging
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from service.errors import EngineError
from service.model.bundle import Bundle, Outputs, Precision
from service.model.spec import (
    CPU,
    CUDA,
    CudaOptions,
    Device,
    SessionSpec,
    choose_batch_sizes,
    choose_precision,
    choose_threads,
    has_vnni,
)

# Width in pixels of the squares in the warm-up clip.
WARM_UP_SQUARE = 8
# ONNX Runtime writes to standard error, and would wait for whoever reads it. Its exceptions have the same text.
LOG_NOTHING = 4  # errors that end the process only

logger = logging.getLogger(__name__)

if not hasattr(ort, "InferenceSession"):
    # Its two builds share files: removing one of them leaves a folder that can be imported and holds nothing.
    raise ImportError("its files are incomplete, as after one of its two builds was removed", name="onnxruntime")


class Engine:
    """One ONNX Runtime session of a bundle's network.

    Call ``warm_up`` and ``run`` from one thread only: they share their buffers, and CUDA graphs can be replayed only in
    the thread that recorded them.

    Args:
        bundle: The bundle to run.
        device: ``auto`` is CUDA if a session can be opened on it, else the CPU; ``cuda`` never falls back.
        precision: Which of the bundle's files to run; ``auto`` lets ``choose_precision`` decide.
        batch_sizes: The only batch sizes that run; smaller batches are padded. ``None`` is 1 on CPU and 1, 2, 4, 8 on
            CUDA.
        threads: ONNX Runtime's threads on CPU; 0 lets ``choose_threads`` decide.
        spinning: Whether ONNX Runtime's idle threads spin.
        cuda: Options of the CUDA provider.

    Raises:
        EngineError: The network cannot be opened as configured.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: Device = "auto",
        precision: Precision | Literal["auto"] = "auto",
        batch_sizes: Sequence[int] | None = (1,),
        threads: int = 0,
        spinning: bool = False,
        cuda: CudaOptions = CudaOptions(),
    ) -> None:
        self._bundle = bundle
        facts = bundle.manifest
        self.labels = tuple(facts.labels)
        self._outputs = facts.output_shapes

        def specify(provider: str) -> SessionSpec:
            on_cuda = provider == CUDA
            sizes = choose_batch_sizes(batch_sizes, on_cuda=on_cuda)
            precise = self._choose(precision, on_cuda=on_cuda)
            return SessionSpec(provider, precise, sizes, choose_threads(threads), spinning, cuda)

        self._session, self._spec = self._open(device, specify)
        self.precision = self._spec.precision
        self.provider = self._spec.provider
        self.batch_sizes = self._spec.batch_sizes
        self._check_signature()
        try:
            self._frames = np.zeros((self.batch_sizes[-1], *facts.clip_shape), np.uint8)  # the batch to run
        except MemoryError as error:
            raise self._misfit(self.batch_sizes[-1], error) from error
        if self._spec.on_cuda:
            _page_lock(self._frames)
        self._buckets = [self._bucket(size) for size in self.batch_sizes]

    def run(self, clips: Sequence[npt.NDArray[np.uint8]]) -> Outputs:
        """Run the network.

        Args:
            clips: Each uint8 ``(40, 224, 224, 3)``, RGB; at most the largest batch size.

        Returns:
            Outputs for these clips, without padding, in memory of their own. They need not be finite.

        Raises:
            EngineError: ONNX Runtime cannot run the batch.
        """
        bucket = next(bucket for bucket in self._buckets if bucket.size >= len(clips))
        for row, clip in zip(self._frames, clips, strict=False):
            row[...] = clip
        return self._run(bucket, len(clips))

    def warm_up(self) -> None:
        """Run every batch size once, because the first run of each is slow, and check the outputs.

        Raises:
            EngineError: A batch size cannot run, or the network overflows.
        """
        self._frames[...] = _warm_up_clip(self._frames.shape[1:])
        for bucket in self._buckets:
            if not self._run(bucket, bucket.size).finite:
                raise EngineError(
                    f"{self._file} overflows on {self.provider}: its outputs are not finite numbers; choose another "
                    "precision, or export the bundle again"
                )

    def _run(self, bucket: "_Bucket", clips: int) -> Outputs:
        try:
            probabilities, *attention = bucket.run(clips)
        except Exception as error:  # ONNX Runtime's errors have no other base class in common
            raise self._misfit(bucket.size, error) from error
        return Outputs(probabilities, attention[0] if attention else None)

    def _bucket(self, size: int) -> "_Bucket":
        try:
            return _Bucket(self._session, self._spec, self._frames[:size], self._outputs)
        except Exception as error:  # such as a GPU whose memory is full
            raise self._misfit(size, error) from error

    def _misfit(self, size: int, error: Exception) -> EngineError:
        return EngineError(
            f"{self._file} cannot run a batch of {size} on {self.provider} ({_first_line(error)}); "
            "choose smaller batch sizes or another precision, or export the bundle again"
        )

    @property
    def _file(self) -> Path:
        return self._bundle.model_path(self.precision)

    def _open(self, device: Device, specify: Callable[[str], SessionSpec]) -> tuple[Any, SessionSpec]:
        """Open a session on the best device allowed. Return it with the specification that it was opened with."""
        if device != "cpu" and CUDA in ort.get_available_providers():
            wanted = specify(CUDA)
            with contextlib.redirect_stdout(
                sys.stderr
            ):  # both print errors to standard output, which is for answers and logs
                ort.preload_dlls()  # the linker does not find CUDA and cuDNN that pip installed
                session = self._load(wanted)
            # "Available" providers are those compiled in. Only a session shows whether CUDA works.
            if session.get_providers()[0] == CUDA:
                return session, wanted
            logger.warning("CUDA is compiled in but does not work here: a driver, GPU or library is missing")
        if device == "cuda":
            raise EngineError(
                "LIMELIGHT_DEVICE is cuda, but ONNX Runtime cannot use CUDA; install the extra `gpu` and an NVIDIA "
                "driver, or set LIMELIGHT_DEVICE=cpu"
            )
        wanted = specify(CPU)
        return self._load(wanted), wanted

    def _choose(self, asked: Precision | Literal["auto"], *, on_cuda: bool) -> Precision:
        manifest = self._bundle.manifest
        if asked == "auto":
            chosen, reason = choose_precision(manifest, on_cuda=on_cuda, vnni=has_vnni())
            logger.info("precision %s: %s", chosen, reason)
        else:
            chosen = asked
        if chosen not in manifest.precisions:
            raise EngineError(
                f"{self._bundle.path / 'manifest.json'} lists no {chosen} file, only {', '.join(manifest.precisions)}; "
                "set LIMELIGHT_PRECISION to one of these or export the bundle again"
            )
        return chosen

    def _load(self, spec: SessionSpec) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = LOG_NOTHING
        options.intra_op_num_threads = spec.threads
        for key, value in spec.session_config().items():
            options.add_session_config_entry(key, value)
        model = self._bundle.read_model(spec.precision)
        try:
            session = ort.InferenceSession(model, options, providers=spec.providers())
        except Exception as error:  # ONNX Runtime's errors have no other base class in common
            raise EngineError(
                f"{self._bundle.model_path(spec.precision)} cannot be loaded by ONNX Runtime ({_first_line(error)}); "
                "export the bundle again with `limelight-model export`"
            ) from error
        session._model_bytes = None  # it would keep them, to open the session again
        return session

    def _check_signature(self) -> None:
        inputs = {node.name for node in self._session.get_inputs()}
        outputs = {node.name: node.shape for node in self._session.get_outputs()}
        missing = self._outputs.keys() - outputs.keys()
        shape = outputs.get("probabilities")
        classes, labels = shape[-1] if shape else None, len(self.labels)
        if inputs != {"frames"}:
            wrong = "must have `frames` as its only input"
        elif missing:
            wrong = f"lacks the output {missing.pop()}"
        elif isinstance(classes, int) and classes != labels:  # if it is no number, warming up finds out
            wrong = f"has {classes} classes, but manifest.json has {labels} labels"
        else:
            return
        raise EngineError(f"{self._file} {wrong}; export the bundle again with `limelight-model export`")


class _Bucket:
    """The input and output buffers of one batch size. Their addresses never change, as CUDA graphs require.

    Args:
        session: The session that reads and writes them.
        spec: What the session was opened with.
        frames: uint8 ``(size, 40, 224, 224, 3)`` in host memory; the CPU provider reads it in place.
        outputs: Shapes of one clip's outputs by name.
    """

    def __init__(
        self,
        session: Any,
        spec: SessionSpec,
        frames: npt.NDArray[np.uint8],
        outputs: Mapping[str, tuple[int, ...]],
    ) -> None:
        device = "cuda" if spec.on_cuda else "cpu"
        self.size = len(frames)
        self._frames = frames
        self._on_device = spec.on_cuda
        self._session = session
        self._input = ort.OrtValue.ortvalue_from_numpy(frames, device)
        self._outputs = [
            ort.OrtValue.ortvalue_from_shape_and_type((self.size, *shape), np.float32, device)
            for shape in outputs.values()
        ]
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("frames", self._input)
        for name, value in zip(outputs, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, value)
        self._options = ort.RunOptions()
        self._options.log_severity_level = LOG_NOTHING
        for key, value in spec.run_config(self.size).items():
            self._options.add_run_config_entry(key, value)

    def run(self, clips: int) -> list[npt.NDArray[np.float32]]:
        """Run the batch, and return copies of the outputs for its first ``clips`` rows."""
        if self._on_device:
            self._input.update_inplace(self._frames)
        self._session.run_with_iobinding(self._binding, self._options)
        return [value.numpy()[:clips].copy() for value in self._outputs]


def _warm_up_clip(shape: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return frames that drive activations as far as any: black, white, noise and random squares in turn.

    With the weights of ImageNet, convolutions of VGG19 reach 9,600 for black and white frames, 16,300 for noise, 13,400
    for clips of UCF-101 and 42,000 for squares. The largest float16 is 65,504.
    """
    random = np.random.default_rng(0)
    clip = random.integers(0, 256, shape, np.uint8)
    clip[0::4], clip[1::4] = 0, 255
    frames, height, width, channels = clip[3::4].shape
    squares = random.integers(0, 2, (frames, height // WARM_UP_SQUARE, width // WARM_UP_SQUARE, channels), np.uint8)
    clip[3::4] = 255 * squares.repeat(WARM_UP_SQUARE, 1).repeat(WARM_UP_SQUARE, 2)
    return clip


def _page_lock(buffer: npt.NDArray[np.uint8]) -> None:
    """Page-lock a buffer for as long as it lives, so that the GPU reads it without an intermediate copy.

    ONNX Runtime's Python API has no pinned memory for CUDA. If pinning fails, that is logged, and copies are slower.
    """
    address = ctypes.c_void_p(buffer.ctypes.data)
    try:
        runtime = ctypes.CDLL(f"libcudart.so.{ort.cuda_version.partition('.')[0]}")  # already loaded by ONNX Runtime
        if status := runtime.cudaHostRegister(address, ctypes.c_size_t(buffer.nbytes), 0):
            raise OSError(f"cudaHostRegister returned {status}")
    except (AttributeError, OSError) as error:
        logger.warning("the input buffer cannot be pinned (%s): copying it to the GPU takes longer", error)
    else:
        weakref.finalize(buffer, runtime.cudaHostUnregister, address)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
