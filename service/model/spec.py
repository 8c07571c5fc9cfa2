"""How a bundle's network is to run: device, precision, batch sizes, ONNX Runtime's options. Decides, and opens nothing.

The options are those of https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html and of
``onnxruntime_session_options_config_keys.h`` and ``onnxruntime_run_options_config_keys.h``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service.model.bundle import Manifest, Precision

Device = Literal["auto", "cuda", "cpu"]
ConvSearch = Literal["HEURISTIC", "EXHAUSTIVE", "DEFAULT"]

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# Below this share of equal top-1 answers int8 is not the same network any more (DESIGN §2 measures it).
INT8_AGREEMENT = 0.98


@dataclass(frozen=True, slots=True)
class CudaOptions:
    """What can be chosen of the CUDA provider.

    `conv_search` is how cuDNN picks its convolutions: EXHAUSTIVE times every one, which makes warming up much longer.
    `memory_limit_bytes` bounds ONNX Runtime's arena, not what cuDNN and CUDA take besides. `graphs` has each batch size
    recorded while warming up and replayed as one launch. `prefer_nhwc` is the layout that tensor cores work in.
    """

    conv_search: ConvSearch = "HEURISTIC"
    memory_limit_bytes: int | None = None
    graphs: bool = False
    prefer_nhwc: bool = True

    def provider_options(self) -> dict[str, str]:
        """As ONNX Runtime's CUDA provider takes them. What is left at ONNX Runtime's own default is not named."""
        options = {
            "cudnn_conv_algo_search": self.conv_search,
            "prefer_nhwc": str(int(self.prefer_nhwc)),
            "enable_cuda_graph": str(int(self.graphs)),
            # Batch sizes are few and fixed: doubling the arena at each extension would only take memory from others.
            "arena_extend_strategy": "kSameAsRequested",
        }
        if self.memory_limit_bytes is not None:
            options["gpu_mem_limit"] = str(self.memory_limit_bytes)
        return options


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """All that a session is opened with. `threads` 0 stands for every core; `cuda` matters on CUDA only."""

    provider: str
    precision: Precision
    batch_sizes: tuple[int, ...]
    threads: int
    spinning: bool
    cuda: CudaOptions

    @property
    def on_cuda(self) -> bool:
        """Whether this is a session on a GPU."""
        return self.provider == CUDA

    def providers(self) -> list[str | tuple[str, dict[str, str]]]:
        """What an `InferenceSession` is asked for."""
        return [(CUDA, self.cuda.provider_options()), CPU] if self.on_cuda else [CPU]

    def session_config(self) -> dict[str, str]:
        """Entries for `SessionOptions.add_session_config_entry`."""
        return {"session.intra_op.allow_spinning": str(int(self.spinning))}

    def run_config(self, batch_size: int) -> dict[str, str]:
        """Entries for `RunOptions.add_run_config_entry`: a CUDA graph is of one shape, so each size has its own."""
        return {"gpu_graph_id": str(batch_size)} if self.on_cuda and self.cuda.graphs else {}


def choose_batch_sizes(asked: Sequence[int] | None, *, on_cuda: bool) -> tuple[int, ...]:
    """The sizes asked for, else 1 on CPU, where more costs memory and gains nothing, and 1, 2, 4, 8 on CUDA."""
    return tuple(sorted(set(asked or ((1, 2, 4, 8) if on_cuda else (1,)))))


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


def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies and adds 8-bit integers in one instruction, which is what int8 is made for."""
    try:
        flags = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(flags.split())
