"""Capabilities: takes from a process the privileges that root has beyond those of an ordinary user.

See capabilities(7) and ``linux/capability.h``.
"""

import ctypes
import struct

_VERSION_3 = 0x20080522
_WORDS = 6  # effective, permitted and inheritable capabilities: the lower 32 of each, then the upper 32
_PR_CAPBSET_DROP = 24


def drop_all(libc: ctypes.CDLL) -> bool:
    """Drop every capability of this process for good. It must have set ``no_new_privs``.

    The kernel drops ambient capabilities along with permitted ones. The bounding set, from which programs may get
    capabilities, can be reduced with CAP_SETPCAP only; without, ``no_new_privs`` keeps programs from getting any.

    Returns:
        Whether the process has no capability now, as the kernel reports it.
    """
    for capability in range(64):  # as many as a set has room for
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = struct.pack("Ii", _VERSION_3, 0)  # 0: this process
    libc.capset(header, bytes(4 * _WORDS))
    left = ctypes.create_string_buffer(b"\xff" * 4 * _WORDS, 4 * _WORDS)
    return bool(libc.capget(header, left) == 0 and not any(left.raw))
