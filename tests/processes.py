"""Child processes, as ``/proc`` lists them."""

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path


def descendants(pid: int) -> list[list[int]]:
    """Return the children of a process, their children, and so on: one list per generation, including zombies."""
    children: dict[int, list[int]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        except OSError:  # the process has just ended
            continue
        children[parent].append(int(stat.parent.name))
    generations: list[list[int]] = []
    while here := [child for parent in (generations[-1] if generations else [pid]) for child in children[parent]]:
        generations.append(here)
    return generations


def decoders(pid: int) -> list[int]:
    """Return the descendants that are decoding a clip. Decoder processes that wait for one have another name."""
    return [child for generation in descendants(pid) for child in generation if _name(child) == "decoder"]


def is_alive(pid: int) -> bool:
    """Return whether a process exists and has not ended: one that has may wait for its parent to notice (a zombie)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def affinities(pid: int) -> dict[str, str]:
    """Return the processors that each thread of a process may use, such as ``0-3``, by the thread's id."""
    found = {}
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(OSError):  # the thread has just ended
            text = status.read_text(encoding="utf-8")
            found[status.parent.name] = text.partition("Cpus_allowed_list:")[2].split()[0]
    return found


@contextlib.contextmanager
def on_one_processor() -> Iterator[str]:
    """Let this thread, and those that it starts, use one processor only until the block ends. Yield its number."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield str(min(allowed))
    finally:
        os.sched_setaffinity(0, allowed)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").rstrip()
    except OSError:  # the process has just ended
        return ""


def until(condition: Callable[[], object], patience_s: float = 60) -> None:
    """Wait until the condition holds; fail if it does not within ``patience_s`` seconds."""
    give_up = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)
