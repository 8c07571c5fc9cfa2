"""A control group with a memory limit, for the processes that a test starts."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import until


@dataclass(frozen=True)
class MemoryGroup:
    """A control group.

    Attributes:
        folder: Its files.
    """

    folder: Path

    @property
    def entering(self) -> list[str]:
        """A command that puts itself into the group and then runs the command after it."""
        return ["sh", "-c", f'echo $$ >"{self.folder}/cgroup.procs" && exec "$@"', "sh"]


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup]:
    """Make a control group below this process's own, of version 1 or 2, until the block ends."""
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    first = "memory" in own
    folder = Path(f"/sys/fs/cgroup/memory{own['memory']}" if first else f"/sys/fs/cgroup{own['']}") / uuid.uuid4().hex
    limit = folder / ("memory.limit_in_bytes" if first else "memory.max")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this kernel lacks control groups for this user")
    try:
        if not limit.exists():
            pytest.skip("this kernel lacks control groups with a memory limit for this user")
        limit.write_text(str(limit_bytes))
        yield MemoryGroup(folder)
    finally:
        until(lambda: not (folder / "cgroup.procs").read_text())
        folder.rmdir()
