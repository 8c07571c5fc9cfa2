"""Runs a program under a kernel that refuses a layer of the sandbox: ``python -m tests.refusing CALL ERRNO COMMAND``.

CALL is one of ``CALLS``, ERRNO the error's name. The filter is libseccomp's, not the service's.
"""

import ctypes
import errno
import os
import sys

_ALLOW, _ERRNO, _EQUAL = 0x7FFF0000, 0x00050000, 4  # SCMP_ACT_ALLOW, SCMP_ACT_ERRNO, SCMP_CMP_EQ
# What is refused: the system call, and an argument with its value if it is refused for that value only.
CALLS: dict[str, tuple[str, tuple[int, int] | None]] = {
    "landlock": ("landlock_create_ruleset", None),
    "landlock_ruleset": ("landlock_create_ruleset", (2, 0)),  # the version is told
    "landlock_restrict": ("landlock_restrict_self", None),
    "seccomp": ("prctl", (0, 22)),  # PR_SET_SECCOMP
    "capset": ("capset", None),
}


class _Comparison(ctypes.Structure):  # struct scmp_arg_cmp of seccomp.h
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("value", ctypes.c_uint64), ("_", ctypes.c_uint64))


def refuse(call: str, error: str) -> None:
    """Have the kernel refuse a call to this process, and to the programs that it runs, with an error."""
    name, argument = CALLS[call]
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(library.seccomp_init(_ALLOW))
    comparisons = (_Comparison * 1)(*([_Comparison(argument[0], _EQUAL, argument[1])] if argument else []))
    number = library.seccomp_syscall_resolve_name(name.encode())
    action = _ERRNO | getattr(errno, error)
    count = 1 if argument else 0
    if library.seccomp_rule_add_array(rules, action, number, count, comparisons) or library.seccomp_load(rules):
        sys.exit(f"libseccomp cannot refuse {name}")


if __name__ == "__main__":
    refuse(sys.argv[1], sys.argv[2])
    os.execvp(sys.argv[3], sys.argv[3:])
