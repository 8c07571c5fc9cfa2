"""What this process runs on: the versions of its libraries, and the processor."""

import platform
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path


def versions(modules: Iterable[str]) -> dict[str, str]:
    """Return the versions of Limelight, Python and these modules, by name."""
    mine = {"limelight": version("limelight"), "python": platform.python_version()}
    return mine | {module: str(import_module(module).__version__) for module in modules}


def has_vnni() -> bool:
    """Whether the processor multiplies and adds 8-bit integers in one instruction, so that the service may use int8."""
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(_cpuinfo("flags").split())


def processor() -> str:
    """Return the model of the processor, and whether it has VNNI."""
    model = _cpuinfo("model name") or platform.processor() or platform.machine()
    return f"{model} ({'with' if has_vnni() else 'without'} VNNI)"


def _cpuinfo(field: str) -> str:
    """Return what Linux says of the first processor; nothing on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")
