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


def processor() -> str:
    """Return the model of the processor, and whether it has VNNI."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line for line in lines if line.startswith("flags")), "")
    return f"{model} ({'with' if 'vnni' in flags else 'without'} VNNI)"
