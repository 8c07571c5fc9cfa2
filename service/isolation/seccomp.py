"""Which system calls a decoder process may make: a filter in classic BPF, see seccomp(2).

Everything that is not listed fails with EPERM. It is written by hand because it is short: what remains for a process
that reads one open file, computes and ends.
"""

import ctypes
import errno
import platform
import struct
from collections.abc import Mapping
from types import MappingProxyType

# Name: (number on x86-64, number on aarch64).
ALLOWED: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        # the clip
        "read": (0, 63),
        "lseek": (8, 62),
        "close": (3, 57),
        # memory (mmap and mprotect have conditions of their own, below)
        "brk": (12, 214),
        "munmap": (11, 215),
        "mremap": (25, 216),
        "madvise": (28, 233),
        # locks of what could have threads; a decoder has none
        "futex": (202, 98),
        "sched_yield": (24, 124),
        "sched_getaffinity": (204, 123),
        "gettid": (186, 178),
        "getpid": (39, 172),
        # clocks, where the kernel has them in no page of the process
        "clock_gettime": (228, 113),
        "gettimeofday": (96, 169),
        "clock_nanosleep": (230, 115),
        "nanosleep": (35, 101),
        # signals: to take one and to return from it
        "rt_sigaction": (13, 134),
        "rt_sigprocmask": (14, 135),
        "rt_sigreturn": (15, 139),
        "sigaltstack": (131, 132),
        "restart_syscall": (219, 128),
        # the rest
        "getrandom": (318, 278),
        "exit": (60, 93),
        "exit_group": (231, 94),
    }
)
CONDITIONAL: Mapping[str, tuple[int, int]] = MappingProxyType({"mmap": (9, 222), "mprotect": (10, 226)})
# Machine, as platform.machine() says it: (column above, AUDIT_ARCH_* of linux/audit.h).
MACHINES: Mapping[str, tuple[int, int]] = MappingProxyType({"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)})

# linux/filter.h and linux/bpf_common.h: load a word of the data, jump, return.
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
# struct seccomp_data of linux/seccomp.h: int nr; u32 arch; u64 instruction_pointer; u64 args[6], little-endian.
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

_PROT_EXEC = 0x4
_MAP_ANONYMOUS = 0x20
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


def program(machine: str) -> bytes:
    """The filter as an array of struct sock_filter. Raises KeyError where the machine's numbers are not known."""
    column, arch = MACHINES[machine]
    number = {name: numbers[column] for name, numbers in {**ALLOWED, **CONDITIONAL}.items()}
    allow, refuse = _instruction(_RETURN, _ALLOW), _instruction(_RETURN, _ERRNO | errno.EPERM)
    parts = [
        _instruction(_LOAD, _ARCH),
        _instruction(_JUMP_IF_EQUAL, arch, 1, 0),
        _instruction(_RETURN, _KILL),  # 32-bit calls have other numbers
        _instruction(_LOAD, _NUMBER),
    ]
    parts += [_when(number[name], allow) for name in ALLOWED]
    # No file becomes memory, and no memory becomes code.
    parts.append(_when(number["mmap"], _if_set(3, _MAP_ANONYMOUS, _if_set(2, _PROT_EXEC, refuse, allow), refuse)))
    parts.append(_when(number["mprotect"], _if_set(2, _PROT_EXEC, refuse, allow)))
    return b"".join([*parts, refuse])


def install(libc: ctypes.CDLL) -> bool:
    """Put this thread, which has to be the only one, under the filter for good. False where the kernel cannot."""
    if platform.machine() not in MACHINES:
        return False
    code = program(platform.machine())
    instructions = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: how many instructions, and where
    fprog = ctypes.create_string_buffer(struct.pack("HP", len(code) // 8, ctypes.addressof(instructions)))
    return bool(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(fprog), 0, 0) == 0)


def _instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, operand)


def _argument(index: int) -> bytes:
    """Load the low half of an argument: all flags asked about are there."""
    return _instruction(_LOAD, _ARGUMENTS + 8 * index)


def _when(number: int, then: bytes) -> bytes:
    """Do this on the call of this number; ``then`` has to return."""
    return _instruction(_JUMP_IF_EQUAL, number, 0, len(then) // 8) + then


def _if_set(index: int, flag: int, then: bytes, otherwise: bytes) -> bytes:
    """Do one or the other; ``then`` has to return."""
    return _argument(index) + _instruction(_JUMP_IF_SET, flag, 0, len(then) // 8) + then + otherwise
