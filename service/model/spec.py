"""Decides how a bundle's network runs: device, precision, batch sizes and ONNX Runtime's options. Opens nothing.

The options are documented at https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html and in
``onnxruntime_session_options_config_keys.h`` and ``onnxruntime_run_options_config_keys.h``.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service.cgroup import processors
from service.model.bundle import Manifest, Precision

Device = Literal["auto", "cuda", "cpu"]
ConvSearch = Literal["HEURISTIC", "EXHAUSTIVE", "DEFAULT"]

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
VNNI_FLAGS = frozenset({"avx512_vnni", "avx_vnni"})  # in /proc/cpuinfo


@dataclass(frozen=True, slots=True)
class CudaOptions:
    """Options of ONNX Runtime's CUDA provider.

    Attributes:
        conv_search: How cuDNN picks convolution algorithms. ``EXHAUSTIVE`` times every one, so warming up takes much
            longer.
        memory_limit_bytes: Limit of ONNX Runtime's memory arena; cuDNN and CUDA use memory beyond it.
        graphs: Whether each batch size is recorded while warming up and then replayed as one launch.
        prefer_nhwc: Whether to use the NHWC layout, in which tensor cores work.
    """

    conv_search: ConvSearch = "HEURISTIC"
    memory_limit_bytes: int | None = None
    graphs: bool = False
    prefer_nhwc: bool = True

    def provider_options(self) -> dict[str, str]:
        """Return the options by ONNX Runtime's names. Those left at ONNX Runtime's default are omitted."""
        options = {
            "cudnn_conv_algo_search": self.conv_search,
            "prefer_nhwc": str(int(self.prefer_nhwc)),
            "enable_cuda_graph": str(int(self.graphs)),
            # Batch sizes are few and fixed, so doubling the arena at each extension would only waste memory.
            "arena_extend_strategy": "kSameAsRequested",
        }
        if self.memory_limit_bytes is not None:
            options["gpu_mem_limit"] = str(self.memory_limit_bytes)
        return options


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """Everything that a session is opened with.

    Attributes:
        provider: ONNX Runtime's execution provider.
        precision: Which of the bundle's files to open.
        batch_sizes: The batch sizes that run, in ascending order.
        threads: Threads on CPU; never 0, with which ONNX Runtime pins threads to cores that may be others'.
        spinning: Whether idle threads spin.
        cuda: Options of the CUDA provider; ignored on CPU.
    """

    provider: str
    precision: Precision
    batch_sizes: tuple[int, ...]
    threads: int
    spinning: bool
    cuda: CudaOptions

    @property
    def on_cuda(self) -> bool:
        """Whether the session runs on a GPU."""
        return self.provider == CUDA

    def providers(self) -> list[str | tuple[str, dict[str, str]]]:
        """Return the ``providers`` argument of ``InferenceSession``."""
        return [(CUDA, self.cuda.provider_options()), CPU] if self.on_cuda else [CPU]

    def session_config(self) -> dict[str, str]:
        """Return the entries for ``SessionOptions.add_session_config_entry``."""
        return {
            "session.intra_op.allow_spinning": str(int(self.spinning)),
            # Weights in files beside the network are not allowed, because the manifest has no checksum of them.
            "session.model_external_initializers_file_folder_path": os.devnull,
        }

    def run_config(self, batch_size: int) -> dict[str, str]:
        """Return the entries for ``RunOptions.add_run_config_entry``. Each batch size has a CUDA graph of its own."""
        return {"gpu_graph_id": str(batch_size)} if self.on_cuda and self.cuda.graphs else {}


def choose_batch_sizes(asked: Sequence[int] | None, *, on_cuda: bool) -> tuple[int, ...]:
    """Return the sizes asked for in ascending order; by default 1, 2, 4, 8 on CUDA and 1 on CPU.

    On CPU larger batches cost memory and gain nothing.
    """
    return tuple(sorted(set(asked or ((1, 2, 4, 8) if on_cuda else (1,)))))


def choose_threads(asked: int, root: Path = Path("/")) -> int:
    """Return the number of threads asked for; for 0, one per core on which this process may run, within its CPU quota.

    Two threads on one core are no faster. ONNX Runtime's own default counts every core of the machine and pins a thread
    to each, whatever the process's affinity (``taskset``, cpusets) is.

    Args:
        asked: Number of threads, or 0.
        root: Where ``/sys`` is; for tests.
    """
    cores = {_siblings(processor, root) for processor in os.sched_getaffinity(0)}
    return asked or min(len(cores), math.ceil(processors()))


def _siblings(processor: int, root: Path) -> str:
    """Return the processors of the core that a processor belongs to, as the kernel lists them."""
    file = root / f"sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list"
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:  # the kernel does not say, or /sys is not mounted
        return str(processor)


def choose_precision(manifest: Manifest, *, on_cuda: bool, vnni: bool) -> tuple[Precision, str]:
    """Return the precision that ``auto`` stands for, and the reason.

    It is fp16 on CUDA. On CPU it is int8 if the processor has VNNI and int8 is known to agree with Keras (see
    ``Manifest.int8_shortfall``), else fp32.
    """
    if on_cuda:
        return (
            ("fp16", "fp16 is the fastest on CUDA")
            if "fp16" in manifest.precisions
            else ("fp32", "the bundle has no fp16 file")
        )
    if "int8" in manifest.precisions and not vnni:
        return "fp32", "this processor has no VNNI; set LIMELIGHT_PRECISION=int8 to use int8 anyway"
    if shortfall := manifest.int8_shortfall:
        return "fp32", shortfall
    return "int8", "this processor has VNNI and int8 is known to agree with Keras"


def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the processor multiplies and adds 8-bit integers in one instruction, which makes int8 fast."""
    try:
        flags = next(line for line in cpuinfo.read_text(encoding="utf-8").splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return not VNNI_FLAGS.isdisjoint(flags.split())
