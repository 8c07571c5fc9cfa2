"""The standard streams of both programs, any of which may be closed, full or without a reader."""

import codecs
import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from service.printable import plain, visible

NO_READER = 128 + signal.SIGPIPE
"""Exit code of a command whose output nobody reads any more: what shells report of one that SIGPIPE ended."""


def run(command: Callable[[], object], program: str = "limelight", *, discard: bool = False) -> None:
    """Run a command. The exit code is not 0 if standard output was lost.

    Args:
        command: The command.
        program: Name of the program, for its errors.
        discard: Drop what is written to streams that are closed, which is an error otherwise.
    """
    _occupy_missing(discard=discard)
    with written(program):
        try:
            command()
        except SystemExit as error:
            if isinstance(error.__context__, BrokenPipeError):  # the libraries that print help exit with 1
                raise error.__context__ from None
            raise
        finally:
            sys.stdout.flush()


@contextlib.contextmanager
def written(program: str = "limelight") -> Iterator[None]:
    """End the program if standard output cannot be written: without a word if its reader has gone, as after ``head``.

    Raises:
        SystemExit: Standard output cannot be written. The exit code is 141 if its reader has gone, else 2.
    """
    try:
        yield
    except BrokenPipeError as error:
        _discard(sys.stdout)
        raise SystemExit(NO_READER) from error
    except OSError as error:
        _discard(sys.stdout)
        complain(lost(error), program)
        raise SystemExit(2) from error


def lost(error: OSError) -> str:
    """Say that standard output cannot be written, and what to do."""
    return f"standard output cannot be written ({error.strerror}); redirect it elsewhere"


def complain(sentence: object, program: str = "limelight") -> None:
    """Print a sentence on standard error, if anything can be printed there.

    It stays one line, and no terminal obeys it: names of files, values of settings and answers of servers are in it.
    """
    try:
        sys.stderr.write(f"{program}: {visible(str(sentence))}\n")
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)


def _occupy_missing(*, discard: bool) -> None:
    """Open standard streams that are closed, so that no library prints into a file or connection with their number.

    They can be read and written no more than before: who writes to them gets an error, unless that is to be dropped.
    """
    output, source = (os.O_WRONLY, os.O_RDONLY) if discard else (os.O_RDONLY, os.O_WRONLY)
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:  # the lowest free number is this one
            os.open(os.devnull, source if name == "stdin" else output)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, open(descriptor, "r" if name == "stdin" else "w", closefd=False, encoding="utf-8"))  # noqa: SIM115
    codecs.register_error("plain", plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")  # its encoding may not have all characters of labels and file names


def _discard(stream: TextIO) -> None:
    """Point a stream that cannot be written to /dev/null; otherwise Python tries again when it ends, and fails."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
