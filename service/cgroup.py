"""The limits of this process's control groups: processor time and memory, from cgroup version 1, 2, or both.

A container's limits are those of its control group and of the groups above it; the least one holds. In a container
without a cgroup namespace, ``/proc/self/cgroup`` has the host's paths, of which only the container's part is mounted.
See ``cgroups(7)`` and the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# A line of ``/proc/self/mountinfo``: ID, parent, device, root, mount point, options, optional fields, "-", and type,
# source and options of the file system. Names may have any characters; blanks, line feeds and backslashes are escaped.
_MOUNT = re.compile(r"^(?:[^ \n]+ ){3}([^ \n]+) ([^ \n]+) .* - (cgroup2?) [^ \n]* ([^ \n]+)$", re.MULTILINE)
_GROUP = re.compile(r"^\d+:([^:\n]*):(.*)$", re.MULTILINE)  # a line of ``/proc/self/cgroup``

# Version 1 has no word for "unlimited": its memory limit is then the largest multiple of the page size below 2**63.
NO_LIMIT = 2**62


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A limit on the memory of a control group.

    Attributes:
        file: The file that sets it.
        limit_bytes: The limit.
        used_bytes: What the group takes, without files that were read once: the kernel drops them when it needs memory.
    """

    file: Path
    limit_bytes: int
    used_bytes: int


def processors(root: Path = Path("/")) -> float:
    """Return how many processors this process may keep busy: a fraction if its control group has a quota.

    Args:
        root: Where ``/proc`` and ``/sys`` are; for tests.
    """
    return min([len(os.sched_getaffinity(0)), *_cpu_quotas(root)])


def memory_limits(root: Path = Path("/")) -> list[MemoryLimit]:
    """Return the limits on this process's memory, the least one first; none if its memory is not limited.

    Args:
        root: Where ``/proc`` and ``/sys`` are; for tests.
    """
    return sorted(_memory_limits(root), key=lambda limit: limit.limit_bytes)


def _cpu_quotas(root: Path) -> Iterator[float]:
    for group in _groups("cpu", root):
        quota, _, period = _read(group / "cpu.max").partition(" ")  # version 2
        if not quota:
            quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):  # not "max" or "-1"
            yield int(quota) / int(period)


def _memory_limits(root: Path) -> Iterator[MemoryLimit]:
    for group in _groups("memory", root):
        for name, usage, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.high", "memory.current", "inactive_file"),  # above it, the group is slowed down to a standstill
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _read(group / name)
            if limit.isdecimal() and int(limit) < NO_LIMIT:
                cached = re.search(rf"^{cache} (\d+)$", _read(group / "memory.stat"), re.MULTILINE)
                used = int(_read(group / usage) or 0) - int(cached[1] if cached else 0)
                yield MemoryLimit(group / name, int(limit), max(0, used))


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of this process's groups that may limit a resource, each followed by those above it."""
    paths = _paths(root)
    for mounted, mount_point, kind, options in _MOUNT.findall(_read(root / "proc/self/mountinfo")):
        path = paths.get("" if kind == "cgroup2" else controller)
        if path is None or not (kind == "cgroup2" or controller in options.split(",")):
            continue
        inside, top = PurePosixPath(path), root / _unescape(mount_point).lstrip("/")
        # Neither holds if the path or the mount is seen from a namespace that it was not made in.
        visible = inside.is_relative_to(_unescape(mounted)) and ".." not in inside.parts
        group = top / inside.relative_to(_unescape(mounted)) if visible else top
        group = group if group.is_dir() else top
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _paths(root: Path) -> dict[str, str]:
    """Return this process's group in each hierarchy, by controller; the one of version 2 has the controller ""."""
    groups = _GROUP.findall(_read(root / "proc/self/cgroup"))
    return {controller: path for controllers, path in groups for controller in controllers.split(",")}


def _read(file: Path) -> str:
    """Return a file's text without the newline at its end; "" if it cannot be read."""
    try:
        return os.fsdecode(file.read_bytes()).rstrip("\n")
    except OSError:
        return ""


def _unescape(field: str) -> str:
    r"""Replace the escapes of mountinfo, such as ``\040``."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)
