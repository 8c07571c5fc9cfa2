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
from types import MappingProxyType

# Name: (number on x86-64, number on aarch64), from the kernel's system call tables.
ALLOWED: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        # the clip
        "read": (0, 63),
        "lseek": (8, 62),
        "close": (3, 57),
        # memory; mmap and mprotect are allowed under conditions, see ``program``
        "brk": (12, 214),
        "munmap": (11, 215),
        "mremap": (25, 216),
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
CONDITIONAL: Mapping[str, tuple[int, int]] = MappingProxyType({"mmap": (9, 222), "mprotect": (10, 226)})
# platform.machine(): (column of the tables above, AUDIT_ARCH_* of linux/audit.h).
MACHINES: Mapping[str, tuple[int, int]] = MappingProxyType({"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)})

# Instructions of linux/filter.h and linux/bpf_common.h: load a word of the data, jump, return.
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
# struct seccomp_data of linux/seccomp.h: int nr; u32 arch; u64 instruction_pointer; u64 args[6], little-endian.
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

_PROT_EXEC = 0x4
_MAP_ANONYMOUS = 0x20
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


def program(machine: str) -> bytes:
    """Return the filter as an array of ``struct sock_filter``.

    ``mmap`` is allowed for anonymous memory that is not executable, ``mprotect`` if it does not make memory executable.

    Args:
        machine: A key of ``MACHINES``.

    Raises:
        KeyError: The machine's system call numbers are not known.
    """
    column, arch = MACHINES[machine]
    number = {name: numbers[column] for name, numbers in {**ALLOWED, **CONDITIONAL}.items()}
    allow, deny = _instruction(_RETURN, _ALLOW), _instruction(_RETURN, _ERRNO | errno.EPERM)
    parts = [
        _instruction(_LOAD, _ARCH),
        _instruction(_JUMP_IF_EQUAL, arch, 1, 0),
        _instruction(_RETURN, _KILL),  # 32-bit system calls have other numbers
        _instruction(_LOAD, _NUMBER),
    ]
    parts += [_on_call(number[name], allow) for name in ALLOWED]
    # Neither map a file nor make memory executable.
    parts.append(_on_call(number["mmap"], _if_flag(3, _MAP_ANONYMOUS, _if_flag(2, _PROT_EXEC, deny, allow), deny)))
    parts.append(_on_call(number["mprotect"], _if_flag(2, _PROT_EXEC, deny, allow)))
    return b"".join([*parts, deny])


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


def _load_argument(index: int) -> bytes:
    """Load the lower 32 bits of an argument, which hold all flags that are tested."""
    return _instruction(_LOAD, _ARGUMENTS + 8 * index)


def _on_call(number: int, then: bytes) -> bytes:
    """Run ``then``, which must end in a return, for one system call."""
    return _instruction(_JUMP_IF_EQUAL, number, 0, len(then) // 8) + then


def _if_flag(index: int, flag: int, then: bytes, otherwise: bytes) -> bytes:
    """Run ``then``, which must end in a return, if the argument has the flag, else ``otherwise``."""
    return _load_argument(index) + _instruction(_JUMP_IF_SET, flag, 0, len(then) // 8) + then + otherwise
