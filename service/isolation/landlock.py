"""Landlock: the process gives up every file by name, TCP, and abstract sockets and signals beyond itself.

See landlock(7) and linux/landlock.h. A ruleset that handles a right and has no rule denies it everywhere.
"""

import ctypes
import os
import struct

_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # the same numbers on every machine
_CREATE_RULESET_VERSION = 1
_TCP = 0b11  # bind, connect; since version 4
_SCOPES = 0b11  # abstract Unix sockets, signals; since version 6


def deny_all(libc: ctypes.CDLL) -> int:
    """Enter such a domain, which needs no_new_privs. The kernel's Landlock version, 0 where it has none."""
    version = libc.syscall(
        ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint(_CREATE_RULESET_VERSION)
    )
    if version <= 0:
        return 0
    attributes = _attributes(version)
    ruleset = libc.syscall(
        ctypes.c_long(_CREATE_RULESET), attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0)
    )
    if ruleset < 0:
        return 0
    restricted = libc.syscall(ctypes.c_long(_RESTRICT_SELF), ctypes.c_int(ruleset), ctypes.c_uint(0))
    os.close(ruleset)
    return int(version) if restricted == 0 else 0


def _attributes(version: int) -> bytes:
    """The struct landlock_ruleset_attr, as long as this version knows it."""
    rights = 13  # reading, writing, executing, making and removing, by name
    rights += version >= 2  # moving between folders
    rights += version >= 3  # truncating
    rights += version >= 5  # ioctl of devices
    fields = [(1 << rights) - 1]
    if version >= 4:
        fields.append(_TCP)
    if version >= 6:
        fields.append(_SCOPES)
    return struct.pack(f"{len(fields)}Q", *fields)
