"""Landlock: takes from a process all access to files by name, to TCP, and to abstract sockets and signals outside it.

A Landlock ruleset that handles an access right and has no rule for it denies that right everywhere. See landlock(7) and
``linux/landlock.h``.
"""

import ctypes
import os
import struct

_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # system call numbers, equal on every architecture
_CREATE_RULESET_VERSION = 1
_TCP = 0b11  # bind, connect; since version 4
_SCOPES = 0b11  # abstract Unix sockets, signals; since version 6


def deny_all(libc: ctypes.CDLL) -> int:
    """Restrict this process by a ruleset without rules. It must have set ``no_new_privs``.

    Returns:
        The kernel's Landlock version; 0 if it has none or refuses the ruleset.
    """
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
    """Return the ``struct landlock_ruleset_attr`` with every right and field that this version knows."""
    rights = 13  # read, write, execute, create and remove, by name
    rights += version >= 2  # move between directories
    rights += version >= 3  # truncate
    rights += version >= 5  # ioctl on devices
    fields = [(1 << rights) - 1]
    if version >= 4:
        fields.append(_TCP)
    if version >= 6:
        fields.append(_SCOPES)
    return struct.pack(f"{len(fields)}Q", *fields)
