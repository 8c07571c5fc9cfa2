"""What a decoder process gives up before it reads the first byte of a stranger's clip: all but computing.

docs/sandbox.md says what each layer is for. Linux only.
"""

import contextlib
import ctypes
import functools
import os
import resource
import signal
from dataclasses import asdict, dataclass
from pathlib import Path

from service.isolation import landlock, seccomp

# linux/prctl.h
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38


@dataclass(frozen=True, slots=True)
class Grants:
    """What this kernel gave. ``landlock`` is its version; 0 or False: the layer is missing."""

    rlimits: bool = False
    no_new_privs: bool = False
    landlock: int = 0
    seccomp: bool = False

    @property
    def missing(self) -> list[str]:
        """Names of the layers that are."""
        return [layer for layer, granted in asdict(self).items() if not granted]


def enter(*, memory_bytes: int, cpu_s: int) -> Grants:
    """Give up, for good, everything but reading what is open, computing, and ending.

    The process has to have one thread only, and everything it will need imported.

    Args:
        memory_bytes: address space that it may take beyond what it has now.
        cpu_s: seconds of processor time that it may take.
    """
    libc = _libc()
    # Where memory runs out, the decoder that wants it is to die, not the service. Lost after this: /proc.
    with contextlib.suppress(OSError):  # where /proc may not be written to
        Path("/proc/self/oom_score_adj").write_text("1000")
    memory_now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    no_new_privs = libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    landlock_version = landlock.deny_all(libc)
    for limit, value in (
        (resource.RLIMIT_AS, memory_now + memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_NPROC, 0),  # no thread either; root is exempt, which leaves it to seccomp
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 0),  # what is open stays open, nothing more is opened
        (resource.RLIMIT_CORE, 0),
    ):
        _lower(limit, value)
    return Grants(rlimits=True, no_new_privs=no_new_privs, landlock=landlock_version, seccomp=seccomp.install(libc))


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent, of this process id, ends."""
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was quicker
        os._exit(1)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
    libc.syscall.restype = ctypes.c_long
    return libc


def _lower(limit: int, value: int) -> None:
    highest = resource.getrlimit(limit)[1]
    if highest != resource.RLIM_INFINITY:
        value = min(value, highest)
    resource.setrlimit(limit, (value, value))
