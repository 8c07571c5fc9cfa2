"""What this process and all processes below it use of the machine, from ``proc(5)``.

They are summed, because a control group may hold other programs: on a host the whole login session, in a container
whatever ``docker exec`` runs.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ProcessTree:
    """This process, and those that it and its children have started.

    Args:
        memory_file: Name of the anonymous files whose memory counts as this process's.
    """

    def __init__(self, memory_file: str) -> None:
        self._link = f"/memfd:{memory_file} "
        self._cpu_s = 0.0

    def cpu_seconds(self) -> float:
        """Return the processor time so far in seconds, also of processes that have ended. It never falls."""
        # A process that ends between two reads is missed once: its parent, which adds its time, has been read before.
        self._cpu_s = max(self._cpu_s, sum(process.cpu_s for process in _tree()))
        return self._cpu_s

    def memory_bytes(self) -> int:
        """Return the memory that is resident.

        Files that processes share, such as libraries, count once. Other pages that a forked process shares with its
        parent count for both: only ``smaps_rollup`` tells them apart, which takes 12 ms for each GB.
        """
        own, *others = _tree()
        processes = own.resident_bytes + sum(process.resident_bytes - process.shared_bytes for process in others)
        return processes + sum(self._memory_files())

    def _memory_files(self) -> Iterator[int]:
        """Yield the memory of each anonymous file that is open. It belongs to no process unless the file is mapped."""
        for file in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                if str(file.readlink()).startswith(self._link):
                    yield 512 * file.stat().st_blocks


@dataclass(frozen=True, slots=True)
class _Process:
    """A process that runs, or has ended and has not been waited for.

    Attributes:
        pid: Its process id.
        parent: That of its parent.
        cpu_s: Processor time in seconds, of itself and of its children that have ended.
        resident_bytes: Its resident memory.
        shared_bytes: The part of it that is files and shared memory.
    """

    pid: int
    parent: int
    cpu_s: float
    resident_bytes: int
    shared_bytes: int


def _tree() -> Iterator[_Process]:
    """Yield this process and those below it, each before its children."""
    processes = [_read(os.getpid())]
    while processes:
        process = processes.pop()
        yield process
        for pid in _children(process.pid):
            try:
                child = _read(pid)
            except OSError:  # it has ended
                continue
            if child.parent == process.pid:  # not another one, which was given the id meanwhile
                processes.append(child)


def _read(pid: int) -> _Process:
    # The command in parentheses may hold any character.
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_bytes().split()
    ticks = sum(map(int, fields[11:15]))  # in user mode and in the kernel, then the same of children that have ended
    return _Process(pid, int(fields[1]), ticks / _TICKS_PER_S, _PAGE_BYTES * int(resident), _PAGE_BYTES * int(shared))


def _children(pid: int) -> Iterator[int]:
    """Yield the ids of a process's children, which the kernel lists by the thread that started them."""
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            yield from map(int, file.read_bytes().split())
