"""The system call filter: its numbers against the kernel's, and what it answers to each call, run by an interpreter."""

import ctypes
import errno
import itertools
import mmap
import platform
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.isolation import seccomp

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_* of linux/audit.h
HEADERS = {
    "x86_64": ("x86_64-linux-gnu/asm/unistd_64.h", "asm/unistd_64.h"),
    "aarch64": ("asm-generic/unistd.h",),  # a new architecture like aarch64 uses the generic table
}
# Every call that a decoder may make. Whoever adds one states the reason in `seccomp.ALLOWED`.
UNCONDITIONAL = {
    *("read", "lseek", "close", "brk", "munmap", "sched_yield", "sched_getaffinity", "gettid", "getpid"),
    *("gettimeofday", "nanosleep", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall"),
    *("getrandom", "exit", "exit_group"),
}
# Those whose arguments matter, with arguments that are allowed.
CONDITIONAL = {
    "mmap": (0, 4096, 3, 0x22, 0xFFFFFFFF, 0),
    "mprotect": (4096, 4096, 3, 0, 0, 0),
    "mremap": (4096, 4096, 8192, 1, 0, 0),
    "madvise": (4096, 4096, 14, 0, 0, 0),
    "futex": (4096, 0x80, 0, 0, 0, 0),
    "clock_gettime": (1, 4096, 0, 0, 0, 0),
    "clock_nanosleep": (1, 0, 4096, 0, 0, 0),
}
ALLOW, KILL_PROCESS, EPERM = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM
X32 = 0x40000000
# Flags that the conditions tell apart, and what is beside them; the last of them have bits above the 32nd as well.
WORDS = (
    *range(16),
    *(1 << bit for bit in range(4, 32)),
    *(0x20 | kind for kind in (1, 2, 3)),
    *(0x22 | flag for flag in (0x10, 0x100, 0x2000, 0x4000, 0x8000, 0x20000, 0x40000, 0x104000)),
    *(flag | futex for flag in (0x80, 0x100, 0x180, 0x200) for futex in range(16)),
    *(0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFFFFF, 101, 102),
)
ARGUMENTS = (*WORDS, *(word | 1 << 32 for word in (0, 1, 3, 4, 14, 0x20, 0x22)), (1 << 64) - 1)


def is_allowed(name: str, arguments: tuple[int, ...]) -> bool:
    """The policy, independent of the filter. The kernel takes flags from the lower 32 bits of an argument."""
    first, second, third, fourth, *_ = (argument & 0xFFFFFFFF for argument in arguments)
    not_executable = third <= mmap.PROT_READ | mmap.PROT_WRITE
    anonymous, no_reserve = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 0x4000  # MAP_NORESERVE, which Python does not name
    # FUTEX_WAIT, FUTEX_WAKE and FUTEX_WAIT_BITSET; FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME
    futexes = {operation | flags for operation in (0, 1, 9) for flags in (0, 128, 256, 128 | 256)}
    conditional = {
        "mmap": not_executable and fourth in {anonymous, anonymous | no_reserve},
        "mprotect": not_executable,
        "mremap": fourth in {0, 1},  # MREMAP_MAYMOVE
        "madvise": third == 14,  # MADV_HUGEPAGE
        "futex": second in futexes,
        "clock_gettime": first < 1 << 31,
        "clock_nanosleep": first < 1 << 31,
    }
    return conditional.get(name, name in UNCONDITIONAL)


def answer(code: bytes, architecture: int, number: int, arguments: tuple[int, ...] = (0,) * 6) -> int:
    """Run a filter as the kernel does (see Documentation/networking/filter.rst) and return its answer."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments)
    instructions = list(struct.iter_unpack("<HBBI", code))
    position = accumulator = 0
    while True:
        operation, if_true, if_false, operand = instructions[position]
        position += 1
        match operation:
            case 0x20:  # BPF_LD | BPF_W | BPF_ABS
                assert operand in range(0, len(data), 4), "the kernel refuses such a filter"
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x54:  # BPF_ALU | BPF_AND | BPF_K
                accumulator &= operand
            case 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
                position += if_true if accumulator == operand else if_false
            case 0x06:  # BPF_RET | BPF_K
                return int(operand)
            case _:
                pytest.fail(f"unknown instruction {operation:#x}")


def numbers_of_libseccomp(machine: str) -> Iterator[dict[str, int]]:
    """Yield the numbers of libseccomp's tables, which it generates from the kernel's, for the names that it knows."""
    try:
        resolve = ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_name_arch
    except OSError:
        return
    names = (*seccomp.ALLOWED, "openat", "execve", "clone")
    yield {name: resolve(ctypes.c_uint32(ARCHITECTURES[machine]), name.encode()) for name in names}


def numbers_of_headers(machine: str) -> Iterator[dict[str, int]]:
    """Yield the numbers of the kernel's own headers, if they are installed."""
    for path in (Path("/usr/include", name) for name in HEADERS[machine]):
        if path.exists():
            lines = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            yield {name: int(number) for name, number in lines}


def numbers(machine: str) -> list[dict[str, int]]:
    tables = [*numbers_of_libseccomp(machine), *numbers_of_headers(machine)]
    if not tables:
        pytest.skip("needs libseccomp.so.2 (Debian: libseccomp2) or the kernel's headers (linux-libc-dev)")
    return tables


@pytest.mark.parametrize(("column", "machine"), list(enumerate(ARCHITECTURES)))
def test_numbers_are_those_of_the_kernel(column: int, machine: str) -> None:
    ours = {name: both[column] for name, both in seccomp.ALLOWED.items()}
    for table in numbers(machine):
        assert ours == {name: table.get(name) for name in ours}


def test_the_list_of_allowed_calls_is_this() -> None:
    assert seccomp.ALLOWED.keys() == UNCONDITIONAL | CONDITIONAL.keys()
    assert seccomp.CONDITIONS.keys() == CONDITIONAL.keys()


@pytest.mark.parametrize("machine", ARCHITECTURES)
class TestFilter:
    def test_every_number_without_a_condition_is_allowed_or_denied_by_name(self, machine: str) -> None:
        code, (table, *_) = seccomp.program(machine), numbers(machine)
        names = {table[name]: name for name in seccomp.ALLOWED}
        for number, arguments in itertools.product(
            (*range(1024), *range(X32, X32 + 1024), 0xFFFFFFFF), ((0,) * 6, ((1 << 64) - 1,) * 6, (1, 2, 3, 4, 5, 6))
        ):
            name = names.get(number, "")
            expected = ALLOW if is_allowed(name, arguments) else EPERM
            assert answer(code, ARCHITECTURES[machine], number, arguments) == expected, (number, name, arguments)

    @pytest.mark.parametrize("name", sorted(CONDITIONAL))
    def test_conditions_look_at_the_arguments_that_decide(self, machine: str, name: str) -> None:
        code, (table, *_) = seccomp.program(machine), numbers(machine)
        allowed = CONDITIONAL[name]
        # The arguments of an allowed call, each replaced in turn; then all of them.
        cases = [(*allowed[:index], value, *allowed[index + 1 :]) for index in range(6) for value in ARGUMENTS]
        for arguments in (allowed, *cases, *((value,) * 6 for value in ARGUMENTS)):
            expected = ALLOW if is_allowed(name, arguments) else EPERM
            assert answer(code, ARCHITECTURES[machine], table[name], arguments) == expected, list(map(hex, arguments))
        assert is_allowed(name, allowed)

    def test_calls_of_another_architecture_kill_the_process(self, machine: str) -> None:
        code = seccomp.program(machine)
        others = {0x40000003, 0x40000028, *ARCHITECTURES.values()} - {ARCHITECTURES[machine]}  # i386, 32-bit Arm
        for other, number in itertools.product(others, range(512)):
            assert answer(code, other, number) == KILL_PROCESS


class Kernel:
    """Takes the place of the C library, and answers prctl."""

    def __init__(self, result: int) -> None:
        self.result = result
        self.calls: list[tuple[int, ...]] = []

    def prctl(self, *arguments: int) -> int:
        self.calls.append(arguments)
        return self.result


@pytest.mark.parametrize("result", [-1, 1])
def test_a_kernel_that_refuses_the_filter_lacks_seccomp(result: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    answers = Kernel(result)

    assert seccomp.install(answers) is False  # type: ignore[arg-type]
    assert len(answers.calls) == 1


@pytest.mark.parametrize("machine", ["riscv64", "i686", "armv7l", ""])
def test_another_machine_lacks_seccomp(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    answers = Kernel(0)

    assert seccomp.install(answers) is False  # type: ignore[arg-type]
    assert answers.calls == []
