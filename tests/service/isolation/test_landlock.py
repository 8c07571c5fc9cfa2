"""Landlock's attributes for each version of the kernel, kernels that refuse, and what this kernel denies."""

import ctypes
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from service.isolation import landlock
from tests.service.isolation import kernel

# `struct landlock_ruleset_attr` and its constants, from the kernel's documentation of its user-space API: each field's
# bits by name, and the version that introduced them.
HANDLED_ACCESS_FS = {
    "EXECUTE": (1 << 0, 1),
    "WRITE_FILE": (1 << 1, 1),
    "READ_FILE": (1 << 2, 1),
    "READ_DIR": (1 << 3, 1),
    "REMOVE_DIR": (1 << 4, 1),
    "REMOVE_FILE": (1 << 5, 1),
    "MAKE_CHAR": (1 << 6, 1),
    "MAKE_DIR": (1 << 7, 1),
    "MAKE_REG": (1 << 8, 1),
    "MAKE_SOCK": (1 << 9, 1),
    "MAKE_FIFO": (1 << 10, 1),
    "MAKE_BLOCK": (1 << 11, 1),
    "MAKE_SYM": (1 << 12, 1),
    "REFER": (1 << 13, 2),
    "TRUNCATE": (1 << 14, 3),
    "IOCTL_DEV": (1 << 15, 5),
}
HANDLED_ACCESS_NET = {"BIND_TCP": (1 << 0, 4), "CONNECT_TCP": (1 << 1, 4)}
SCOPED = {"ABSTRACT_UNIX_SOCKET": (1 << 0, 6), "SIGNAL": (1 << 1, 6)}


def attributes(version: int) -> bytes:
    """Return the whole structure that a kernel of this version knows."""
    fields = (HANDLED_ACCESS_FS, HANDLED_ACCESS_NET, SCOPED)
    return b"".join(
        sum(bit for bit, since in field.values() if since <= version).to_bytes(8, "little")
        for field in fields
        if min(since for _, since in field.values()) <= version
    )


class Kernel:
    """Takes the place of the C library, and answers Landlock's three calls."""

    def __init__(self, version: int = 7, *, has_ruleset: bool = True, restricts: bool = True) -> None:
        self.version, self.has_ruleset, self.restricts = version, has_ruleset, restricts
        self.attributes = b""
        self.ruleset = -1
        self.restricted = False

    def syscall(self, number: ctypes.c_long, *arguments: Any) -> int:
        match number.value, *(getattr(argument, "value", argument) for argument in arguments):
            case 444, None, 0, 1:
                return self.version
            case 444, bytes() as given, size, 0 if size == len(given):
                self.attributes = given
                self.ruleset = os.open(os.devnull, os.O_RDONLY) if self.has_ruleset else -1
                return self.ruleset
            case 446, self.ruleset, 0:
                self.restricted = self.restricts
                return 0 if self.restricts else -1
            case call:
                pytest.fail(f"unknown call: {call}")


def deny_all(answers: Kernel) -> int:
    return landlock.deny_all(answers)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6, 7, 8, 100])
def test_every_right_and_scope_that_a_version_knows_is_denied(version: int) -> None:
    answers = Kernel(version)

    assert deny_all(answers) == version
    assert answers.restricted
    assert answers.attributes == attributes(version)
    with pytest.raises(OSError, match="Bad file descriptor"):  # it has been closed
        os.fstat(answers.ruleset)


@pytest.mark.parametrize(
    "answers",
    [Kernel(-1), Kernel(0), Kernel(has_ruleset=False), Kernel(restricts=False)],
    ids=["no version", "version 0", "no ruleset", "no restriction"],
)
def test_a_kernel_that_refuses_lacks_landlock(answers: Kernel) -> None:
    assert deny_all(answers) == 0
    assert not answers.restricted


# What a process tries whose only layer is Landlock, and the version from which on it is denied.
ACTS = {
    "read a file": ("open('/etc/passwd')", 1),
    "list a directory": ("os.listdir('/')", 1),
    "make a file": ("open('made', 'w')", 1),
    "make a directory": ("os.mkdir('made')", 1),
    "run a program": ("os.execv('/bin/true', ['true'])", 1),
    "truncate a file": ("os.truncate('file', 0)", 3),
    "connect": ("socket.create_connection(('127.0.0.1', PORT))", 4),
    "listen": ("socket.socket().bind(('127.0.0.1', 0))", 4),
    "connect to an abstract socket": ("socket.socket(socket.AF_UNIX).connect(ABSTRACT)", 6),
    "signal its parent": ("os.kill(os.getppid(), 0)", 6),
}


def test_what_landlock_denies_by_itself_depends_on_its_version(tmp_path: Path) -> None:
    version = kernel.landlock_version()
    if not version:
        pytest.skip("needs a kernel with landlock")
    program = f"""
        import ctypes, os, socket
        from service.isolation import landlock

        def is_denied(act):
            try:
                exec(act)
            except PermissionError:
                return True
            return False

        listener = socket.create_server(("127.0.0.1", 0))
        PORT = listener.getsockname()[1]
        ABSTRACT = f"\\0limelight-test-{{os.getpid()}}"
        # Abstract sockets and signals are open within a sandbox: the socket must be made outside.
        ready, there = socket.socketpair()
        if os.fork() == 0:
            with socket.socket(socket.AF_UNIX) as abstract:
                abstract.bind(ABSTRACT)
                abstract.listen()
                there.send(b".")
                there.recv(1)
            os._exit(0)
        ready.recv(1)
        libc = ctypes.CDLL(None)
        assert libc.prctl(38, 1, 0, 0, 0) == 0
        assert landlock.deny_all(libc) == {version}
        print([is_denied(act) for act in {[act for act, _ in ACTS.values()]!r}])
        ready.send(b".")
    """
    (tmp_path / "file").touch()
    command = [sys.executable, "-c", textwrap.dedent(program)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)

    assert ended.stdout == f"{[since <= version for _, since in ACTS.values()]}\n"
