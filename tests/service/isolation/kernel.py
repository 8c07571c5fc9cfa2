"""What the kernel offers and what it says about a process, asked without the service's code."""

import ctypes
import platform
import re
from pathlib import Path

LANDLOCK_CREATE_RULESET = 444  # on every machine; with the flag 1 it returns the version


def landlock_version() -> int:
    """Return the kernel's Landlock version, 0 if it has none."""
    return max(0, int(ctypes.CDLL(None).syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)))


def missing_layers() -> list[str]:
    """Return the layers of the sandbox that this kernel cannot grant, by their names in ``Grants``."""
    layers = []
    if not landlock_version():
        layers.append("landlock")
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    if (
        not actions.exists()
        or "errno" not in actions.read_text(encoding="utf-8")
        or platform.machine() not in {"x86_64", "aarch64"}
    ):
        layers.append("seccomp")
    return layers


def status(pid: int | str = "self") -> dict[str, str]:
    """Return the lines of ``/proc/PID/status``."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def limits(pid: int) -> dict[str, str]:
    """Return the hard limits of ``/proc/PID/limits``, each of which must equal its soft limit."""
    rows = [re.split(r"  +", line) for line in Path(f"/proc/{pid}/limits").read_text(encoding="utf-8").splitlines()[1:]]
    return {name: hard for name, soft, hard, *_ in rows if soft == hard}
