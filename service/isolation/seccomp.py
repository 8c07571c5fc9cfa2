"""The seccomp filter of a decoder process: lists the system calls that it may make. See seccomp(2).

A call that is not listed fails with ``EPERM`` instead of killing the process, so that a new version of a library that
tries another call can fall back. The filter is classic BPF, written by hand because it is short: a decoder process only
reads one open file, computes and exits.
"""

import ctypes
import errno
import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# Name: (number on x86-64, number on aarch64), from the kernel's system call tables.
ALLOWED: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        # the clip
        "read": (0, 63),
        "lseek": (8, 62),
        "close": (3, 57),
        # memory
        "brk": (12, 214),
        "mmap": (9, 222),
        "munmap": (11, 215),
        "mremap": (25, 216),
        "mprotect": (10, 226),
        "madvise": (28, 233),
        # locks of libraries that may use threads; a decoder has one thread only
        "futex": (202, 98),
        "sched_yield": (24, 124),
        "sched_getaffinity": (204, 123),
        "gettid": (186, 178),
        "getpid": (39, 172),
        # clocks, if the kernel does not provide them without a system call (vDSO)
        "clock_gettime": (228, 113),
        "gettimeofday": (96, 169),
        "clock_nanosleep": (230, 115),
        "nanosleep": (35, 101),
        # signals: handle one and return from it
        "rt_sigaction": (13, 134),
        "rt_sigprocmask": (14, 135),
        "rt_sigreturn": (15, 139),
        "sigaltstack": (131, 132),
        "restart_syscall": (219, 128),
        # other
        "getrandom": (318, 278),
        "exit": (60, 93),
        "exit_group": (231, 94),
    }
)


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on an argument of a system call, whose lower 32 bits decide: the kernel ignores or refuses others.

    Attributes:
        index: The argument's index.
        mask: The bits that are tested.
        values: The values that these bits may have.
    """

    index: int
    mask: int
    values: tuple[int, ...]


_ALL = 0xFFFFFFFF
_NOT_EXECUTABLE = Condition(2, _ALL & ~0x3, (0,))  # nothing but PROT_READ and PROT_WRITE
# One of a clip's own clocks. Negative numbers are clocks of other processes.
_FIXED_CLOCK = Condition(0, 0x80000000, (0,))
# Name: conditions that must all hold. The numbers are equal on both machines.
CONDITIONS: Mapping[str, tuple[Condition, ...]] = MappingProxyType(
    {
        # MAP_PRIVATE | MAP_ANONYMOUS, perhaps with MAP_NORESERVE: no files, nothing shared, no huge or locked pages
        "mmap": (_NOT_EXECUTABLE, Condition(3, _ALL & ~0x4000, (0x22,))),
        "mprotect": (_NOT_EXECUTABLE,),
        "mremap": (Condition(3, _ALL & ~0x1, (0,)),),  # nothing but MREMAP_MAYMOVE, which realloc uses
        "madvise": (Condition(2, _ALL, (14,)),),  # MADV_HUGEPAGE, for glibc's tunable (see ``processes``)
        # FUTEX_WAIT, FUTEX_WAKE and FUTEX_WAIT_BITSET, perhaps with FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME
        "futex": (Condition(1, _ALL & ~0x180, (0, 1, 9)),),
        "clock_gettime": (_FIXED_CLOCK,),
        "clock_nanosleep": (_FIXED_CLOCK,),
    }
)
# platform.machine(): (column of the table above, AUDIT_ARCH_* of linux/audit.h).
MACHINES: Mapping[str, tuple[int, int]] = MappingProxyType({"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)})

# Instructions of linux/filter.h and linux/bpf_common.h: load a word of the data, mask it, jump, return.
_LOAD, _AND, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
# struct seccomp_data of linux/seccomp.h: int nr; u32 arch; u64 instruction_pointer; u64 args[6], little-endian.
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


def program(machine: str) -> bytes:
    """Return the filter as an array of ``struct sock_filter``.

    Args:
        machine: A key of ``MACHINES``.

    Raises:
        KeyError: The machine's system call numbers are not known.
    """
    column, arch = MACHINES[machine]
    parts = [
        _instruction(_LOAD, _ARCH),
        _instruction(_JUMP_IF_EQUAL, arch, 1, 0),
        _instruction(_RETURN, _KILL),  # 32-bit system calls have other numbers
        _instruction(_LOAD, _NUMBER),
    ]
    for name, numbers in ALLOWED.items():
        checks = b"".join(map(_require, CONDITIONS.get(name, ()))) + _instruction(_RETURN, _ALLOW)
        parts += [_instruction(_JUMP_IF_EQUAL, numbers[column], 0, len(checks) // 8), checks]
    return b"".join([*parts, _deny()])


def install(libc: ctypes.CDLL) -> bool:
    """Apply the filter to this process for good. The process must have one thread and have set ``no_new_privs``.

    Returns:
        Whether it is applied; False on other machines than those of ``MACHINES`` and on kernels without seccomp.
    """
    if platform.machine() not in MACHINES:
        return False
    code = program(platform.machine())
    instructions = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: number of instructions, address
    fprog = ctypes.create_string_buffer(struct.pack("HP", len(code) // 8, ctypes.addressof(instructions)))
    return bool(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(fprog), 0, 0) == 0)


def _instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, operand)


def _deny() -> bytes:
    return _instruction(_RETURN, _ERRNO | errno.EPERM)


def _require(condition: Condition) -> bytes:
    """Go on if the condition holds, else deny the call."""
    values = condition.values
    load = _instruction(_LOAD, _ARGUMENTS + 8 * condition.index) + _instruction(_AND, condition.mask)
    # Each jump skips the jumps after it and the denial.
    jumps = (_instruction(_JUMP_IF_EQUAL, value, len(values) - n, 0) for n, value in enumerate(values))
    return b"".join([load, *jumps, _deny()])
