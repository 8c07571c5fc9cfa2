"""The bundle's network on a device: which device, which precision, and the ONNX Runtime session."""

import contextlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from service.model.bundle import Bundle, Manifest, Precision

Device = Literal["auto", "cuda", "cpu"]

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# Below this share of equal top-1 answers int8 is not the same network any more (DESIGN §2 measures it).
INT8_AGREEMENT = 0.98

logger = logging.getLogger(__name__)


class EngineError(Exception):
    """The network cannot run as asked. One sentence that names the file or setting and the remedy."""


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """Answers of n clips: (n, classes), and (n, 40, 7, 7) or None for the `base` variant. Each map sums to 1."""

    probabilities: npt.NDArray[np.float32]
    attention: npt.NDArray[np.float32] | None


def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies and adds 8-bit integers in one instruction, which is what int8 is made for."""
    try:
        flags = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(flags.split())


def choose_precision(manifest: Manifest, *, on_cuda: bool, vnni: bool) -> tuple[Precision, str]:
    """What `auto` stands for, and why: fp16 on CUDA; on CPU int8 where it is fast and agrees, else fp32."""
    if on_cuda:
        return ("fp16", "fp16 is the fastest on CUDA") if "fp16" in manifest.precisions else ("fp32", "no fp16 file")
    if "int8" not in manifest.precisions:
        return "fp32", "the bundle holds no int8 file"
    if not vnni:
        return "fp32", "this processor has no VNNI; LIMELIGHT_PRECISION=int8 takes int8 all the same"
    agreement = manifest.precisions["int8"].agreement
    if agreement is None:
        return "fp32", "the manifest does not record how well int8 agrees; `limelight-model verify` measures it"
    if agreement.top1 < INT8_AGREEMENT:
        return "fp32", f"int8 agrees on {agreement.top1:.1%} of the clips only, {INT8_AGREEMENT:.0%} are asked for"
    return "int8", f"this processor has VNNI and int8 agrees on {agreement.top1:.1%} of {agreement.n} clips"


class Engine:
    """One ONNX Runtime session of the bundle's network.

    `device` `auto` is CUDA where a session really gets it, else the CPU; `cuda` never falls back. `batch_sizes` None
    stands for 1 on CPU (more costs memory and gains nothing) and 1, 2, 4, 8 on CUDA; `threads` 0 for every core.
    `run` may be called from any thread. Raises EngineError.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: Device = "auto",
        precision: Precision | Literal["auto"] = "auto",
        batch_sizes: Sequence[int] | None = (1,),
        threads: int = 0,
    ) -> None:
        self._bundle = bundle
        self._threads = threads
        self.labels = tuple(bundle.manifest.labels)
        self._session, self.precision = self._open(device, precision)
        self.provider: str = self._session.get_providers()[0]
        self.batch_sizes = tuple(batch_sizes or ((1, 2, 4, 8) if self.provider == CUDA else (1,)))
        self._outputs = ["probabilities"] + (["attention"] if bundle.manifest.variant == "attention" else [])
        self._check_signature()

    def run(self, frames: npt.NDArray[np.uint8]) -> EngineOutput:
        """The network's answer for frames uint8 (n, 40, 224, 224, 3), RGB."""
        probabilities, *attention = self._session.run(self._outputs, {"frames": frames})
        return EngineOutput(probabilities, attention[0] if attention else None)

    def warm_up(self) -> None:
        """Run every batch size once, so that no request pays for the first time. Raises EngineError."""
        facts = self._bundle.manifest
        for size in self.batch_sizes:
            frames = np.zeros((size, facts.frame_count, facts.image_size, facts.image_size, 3), np.uint8)
            try:
                output = self.run(frames)
            except Exception as error:
                raise EngineError(
                    f"{self._file} cannot run a batch of {size} on {self.provider} ({_first_line(error)}); "
                    "choose smaller batch sizes or another precision, or export the bundle again"
                ) from error
            if output.probabilities.shape != (size, len(self.labels)):
                raise EngineError(
                    f"{self._file} answers {output.probabilities.shape[-1]} classes where manifest.json has "
                    f"{len(self.labels)} labels; export the bundle again with `limelight-model export`"
                )

    @property
    def _file(self) -> Path:
        return self._bundle.model_path(self.precision)

    def _open(self, device: Device, precision: Precision | Literal["auto"]) -> tuple[Any, Precision]:
        """The session on the best device allowed, with the precision it took."""
        if device != "cpu" and CUDA in ort.get_available_providers():
            chosen = self._choose(precision, on_cuda=True)
            with contextlib.redirect_stdout(sys.stderr):  # both print their troubles where our answers and logs go
                ort.preload_dlls()  # CUDA and cuDNN installed by pip lie where no linker looks
                session = self._load(chosen, [CUDA, CPU])
            # The available providers are those compiled in; only the session knows whether CUDA really works.
            if session.get_providers()[0] == CUDA:
                return session, chosen
            logger.warning("CUDA is compiled in but does not work here: no driver, no GPU or no library")
        if device == "cuda":
            raise EngineError(
                "device `cuda` was asked for and ONNX Runtime cannot use it; install the extra `gpu` and an NVIDIA "
                "driver, or set LIMELIGHT_DEVICE=cpu"
            )
        chosen = self._choose(precision, on_cuda=False)
        return self._load(chosen, [CPU]), chosen

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

    def _load(self, precision: Precision, providers: list[str]) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        path = self._bundle.model_path(precision)
        try:
            return ort.InferenceSession(path, options, providers=providers)
        except Exception as error:  # ONNX Runtime's own classes share no base but this one
            raise EngineError(
                f"{path} cannot be loaded by ONNX Runtime ({_first_line(error)}); "
                "export the bundle again with `limelight-model export`"
            ) from error

    def _check_signature(self) -> None:
        inputs = {node.name for node in self._session.get_inputs()}
        missing = set(self._outputs) - {node.name for node in self._session.get_outputs()}
        if inputs != {"frames"} or missing:
            wrong = f"lacks the output {missing.pop()}" if missing else "does not take `frames` alone"
            raise EngineError(f"{self._file} {wrong}; export the bundle again with `limelight-model export`")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
