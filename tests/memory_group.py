"""A control group with a limit on memory or on processes, for the processes that a test starts."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import until


@dataclass(frozen=True)
class Group:
    """A control group.

    Attributes:
        folder: Its files.
    """

    folder: Path

    @property
    def entering(self) -> list[str]:
        """A command that puts itself into the group and then runs the command after it."""
        return ["sh", "-c", f'echo $$ >"{self.folder}/cgroup.procs" && exec "$@"', "sh"]

    def limit_processes(self, most: int | str) -> None:
        """Set the number of processes and threads, or "max". A number below the present one stops new ones only."""
        (self.folder / "pids.max").write_text(str(most), encoding="utf-8")


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Group]:
    """Make a control group with a memory limit until the block ends."""
    with _group("memory", ("memory.limit_in_bytes", "memory.max")) as (group, limit):
        limit.write_text(str(limit_bytes), encoding="utf-8")
        yield group


@contextmanager
def pids_group() -> Iterator[Group]:
    """Make a control group that can limit the number of processes, until the block ends."""
    with _group("pids", ("pids.max", "pids.max")) as (group, _):
        yield group


@contextmanager
def _group(controller: str, limits: tuple[str, str]) -> Iterator[tuple[Group, Path]]:
    """Make a control group below this process's own, of version 1 or 2, until the block ends.

    Args:
        controller: The controller that it needs.
        limits: Name of the file with the limit in version 1 and in version 2.

    Yields:
        The group and the file with its limit.
    """
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines())
    first = controller in own
    folder = Path(f"/sys/fs/cgroup/{controller}{own[controller]}" if first else f"/sys/fs/cgroup{own['']}")
    folder /= uuid.uuid4().hex
    limit = folder / limits[0 if first else 1]
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this kernel lacks control groups for this user")
    try:
        if not limit.exists():
            pytest.skip(f"this kernel lacks control groups with the controller {controller} for this user")
        yield Group(folder), limit
    finally:
        until(lambda: not (folder / "cgroup.procs").read_text(encoding="utf-8"))
        folder.rmdir()
