"""Limits of control groups, read from made trees that look like ``/proc`` and ``/sys``."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cgroup import memory_limits, processors
from tests.memory_group import memory_group

V1_NO_LIMIT = "9223372036854771712"
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = """\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"""

V1_FILES = {
    "cpu,cpuacct/docker/c1/cpu.cfs_quota_us": "50000",
    "cpu,cpuacct/docker/c1/cpu.cfs_period_us": "100000",
    "memory/docker/c1/memory.limit_in_bytes": "1073741824",
    "memory/docker/c1/memory.usage_in_bytes": "5000",
    "memory/docker/c1/memory.stat": "total_inactive_file 1000",
    "memory/memory.limit_in_bytes": V1_NO_LIMIT,
}
V1_GROUPS = "4:memory:/docker/c1\n1:cpu,cpuacct:/docker/c1\n0::/"


def write(root: Path, cgroup: str, mountinfo: str, files: Mapping[str, str]) -> Path:
    """Write a tree with ``/proc/self`` and with these files below ``/sys/fs/cgroup``. Return its root."""
    contents = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mountinfo}
    contents |= {f"sys/fs/cgroup/{name}": content for name, content in files.items()}
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(content + "\n"))
    return root


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def test_a_machine_without_control_groups_has_no_limits(tmp_path: Path) -> None:
    assert processors(tmp_path) == 8
    assert memory_limits(tmp_path) == []


class TestVersion2:
    def test_max_is_no_limit(self, tmp_path: Path) -> None:
        root = write(tmp_path, "0::/a", V2, {"a/cpu.max": "max 100000", "a/memory.max": "max"})

        assert processors(root) == 8
        assert memory_limits(root) == []

    def test_a_container_sees_its_own_group_as_the_root(self, tmp_path: Path) -> None:
        root = write(tmp_path, "0::/", V2, {"cpu.max": "50000 100000", "memory.max": "1073741824"})

        assert processors(root) == 0.5
        assert [limit.limit_bytes for limit in memory_limits(root)] == [2**30]

    @pytest.mark.parametrize("path", ["/kubepods/pod7/c1", "/../../c1"])
    def test_a_path_that_is_not_mounted_stands_for_the_mounted_root(self, tmp_path: Path, path: str) -> None:
        root = write(tmp_path, f"0::{path}", V2, {"cpu.max": "150000 100000"})

        assert processors(root) == 1.5

    @pytest.mark.parametrize("name", ["\u00a0", "\u2028", "\x0b", "\x85", "\udce4", "- cgroup2"])
    def test_other_mounts_may_have_any_name(self, tmp_path: Path, name: str) -> None:
        mounts = f"29 23 0:25 / /media/{name.replace(' ', chr(92) + '040')} rw - vfat /dev/sdb1 rw\n{V2}"

        assert processors(write(tmp_path, "0::/", mounts, {"cpu.max": "150000 100000"})) == 1.5

    @pytest.mark.parametrize("quota", ["0 100000", "50000 0", "50000", "-1 100000", ""])
    def test_what_is_no_quota_changes_nothing(self, tmp_path: Path, quota: str) -> None:
        assert processors(write(tmp_path, "0::/", V2, {"cpu.max": quota})) == 8

    def test_a_quota_above_the_affinity_changes_nothing(self, tmp_path: Path) -> None:
        assert processors(write(tmp_path, "0::/", V2, {"cpu.max": "6400000 100000"})) == 8

    def test_a_group_is_slowed_down_above_memory_high(self, tmp_path: Path) -> None:
        root = write(tmp_path, "0::/", V2, {"memory.max": "4000", "memory.high": "3000"})

        assert [limit.file.name for limit in memory_limits(root)] == ["memory.high", "memory.max"]

    def test_what_a_group_takes_leaves_out_files_that_were_read_once(self, tmp_path: Path) -> None:
        usage = {"memory.current": "3000", "memory.stat": "anon 1800\ninactive_file 1000\nactive_file 200"}
        (limit,) = memory_limits(write(tmp_path, "0::/", V2, {"memory.max": "4000"} | usage))

        assert limit.used_bytes == 2000

    @given(st.lists(st.tuples(st.none() | st.integers(1, 800_000), st.none() | st.integers(1, 2**40)), min_size=1))
    def test_the_least_limit_on_the_way_up_holds(
        self, tmp_path_factory: pytest.TempPathFactory, levels: list[tuple[int | None, int | None]]
    ) -> None:
        files = {}
        for depth, (quota, memory) in enumerate(levels):
            folder = "n/" * depth
            files[f"{folder}cpu.max"] = f"{quota or 'max'} 100000"
            files[f"{folder}memory.max"] = str(memory or "max")
        path = "/n" * (len(levels) - 1) or "/"
        root = write(tmp_path_factory.mktemp("root"), f"0::{path}", V2, files)

        assert processors(root) == min([8, *(quota / 100_000 for quota, _ in levels if quota)])
        assert [limit.limit_bytes for limit in memory_limits(root)] == sorted(memory for _, memory in levels if memory)


class TestVersion1:
    def test_each_controller_has_a_hierarchy_of_its_own(self, tmp_path: Path) -> None:
        root = write(tmp_path, V1_GROUPS, V1.format(root="/"), V1_FILES)
        (limit,) = memory_limits(root)

        assert processors(root) == 0.5
        assert (limit.limit_bytes, limit.used_bytes, limit.file.name) == (2**30, 4000, "memory.limit_in_bytes")

    def test_a_container_that_sees_the_path_of_the_host_finds_its_own_mount(self, tmp_path: Path) -> None:
        files = {name.replace("docker/c1/", ""): content for name, content in V1_FILES.items() if "docker" in name}
        root = write(tmp_path, V1_GROUPS, V1.format(root="/docker/c1"), files)

        assert processors(root) == 0.5
        assert [limit.limit_bytes for limit in memory_limits(root)] == [2**30]

    def test_minus_one_and_the_largest_number_are_no_limits(self, tmp_path: Path) -> None:
        files = V1_FILES | {
            "cpu,cpuacct/docker/c1/cpu.cfs_quota_us": "-1",
            "memory/docker/c1/memory.limit_in_bytes": V1_NO_LIMIT,
        }
        root = write(tmp_path, V1_GROUPS, V1.format(root="/"), files)

        assert processors(root) == 8
        assert memory_limits(root) == []

    def test_beside_version_1_version_2_may_be_mounted_without_controllers(self, tmp_path: Path) -> None:
        mounts = V1.format(root="/") + "\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
        root = write(tmp_path, V1_GROUPS, mounts, V1_FILES)

        assert processors(root) == 0.5
        assert [limit.limit_bytes for limit in memory_limits(root)] == [2**30]


def test_the_limit_of_a_real_group_is_found() -> None:
    code = (
        "from service.cgroup import memory_limits; limit = memory_limits()[0];"
        "print(limit.limit_bytes, limit.file.parent, limit.used_bytes > 0)"
    )
    with memory_group(2**30) as group:
        command = [*group.entering, sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert done.stdout.split() == [str(2**30), str(group.folder), "True"]
