"""Takes from a decoder process everything but computing, before it reads the first byte of a clip.

``docs/sandbox.md`` says what each layer is for and where it may be missing.
"""

import contextlib
import ctypes
import functools
import os
import resource
import signal
from dataclasses import asdict, dataclass
from pathlib import Path

from service.isolation import capabilities, landlock, seccomp

# linux/prctl.h
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38


@dataclass(frozen=True, slots=True)
class Grants:
    """The layers of the sandbox that this kernel grants.

    Attributes:
        rlimits: Whether the resource limits are set.
        no_new_privs: Whether running a program can no longer add privileges.
        no_capabilities: Whether the process has no capability, which root has by default.
        landlock: The kernel's Landlock version; 0 if the layer is missing.
        seccomp: Whether system calls are filtered.
    """

    rlimits: bool
    no_new_privs: bool
    no_capabilities: bool
    landlock: int
    seccomp: bool

    @property
    def missing(self) -> list[str]:
        """Names of the layers that are missing."""
        return [layer for layer, granted in asdict(self).items() if not granted]


def enter_sandbox(*, memory_bytes: int, cpu_s: int) -> Grants:
    """Restrict this process for good to reading what is open, computing and exiting.

    The process must have one thread only, and must have imported every module that it will need.

    Args:
        memory_bytes: Address space that the process may use beyond its present use.
        cpu_s: Processor time that the process may use, in seconds.

    Returns:
        The layers that the kernel grants.
    """
    libc = _libc()
    # If the machine runs out of memory, the kernel kills this process first, not the service. After the sandbox is
    # entered, /proc can no longer be opened.
    with contextlib.suppress(OSError):  # /proc may be read-only
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    memory_now = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    no_new_privs = libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    no_capabilities = capabilities.drop_all(libc)
    landlock_version = landlock.deny_all(libc)
    for limit, value in (
        (resource.RLIMIT_AS, memory_now + memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_NPROC, 0),  # threads count too; root is exempt, so seccomp denies both as well
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 0),  # open descriptors stay open, new ones cannot be opened
        (resource.RLIMIT_CORE, 0),
    ):
        _lower(limit, value)
    return Grants(
        rlimits=True,
        no_new_privs=no_new_privs,
        no_capabilities=no_capabilities,
        landlock=landlock_version,
        seccomp=seccomp.install(libc),
    )


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent, whose process id is ``parent``, ends."""
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent ended before the call
        os._exit(1)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
    libc.syscall.restype = ctypes.c_long
    return libc


def _lower(limit: int, value: int) -> None:
    """Set a resource limit, soft and hard, to ``value``, or leave it at its hard limit if that is lower."""
    highest = resource.getrlimit(limit)[1]
    if highest != resource.RLIM_INFINITY:
        value = min(value, highest)
    resource.setrlimit(limit, (value, value))
