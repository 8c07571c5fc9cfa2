"""The standard streams of the commands, any of which may be closed, full or without a reader."""

import codecs
import contextlib
import io
import os
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TextIO

NO_READER = 128 + signal.SIGPIPE
"""Exit code of a command whose output nobody reads any more: what shells report of one that SIGPIPE ended."""

# What is printed in place of characters that the encoding of a stream lacks; "?" for all others.
PLAIN: Mapping[str, str] = MappingProxyType(
    {"█": "#", "×": "x", "→": "->", "…": "...", "–": "-", "’": "'", "·": "-", "\u200c": "", "\u200d": ""}
)
JOINERS = "\u200c\u200d"  # which words and emojis are made with


def run(command: Callable[[], object]) -> None:
    """Run a command. The exit code is not 0 if standard output was lost."""
    _occupy_missing()
    with written():
        try:
            command()
        except SystemExit as error:
            if isinstance(error.__context__, BrokenPipeError):  # the libraries that print help exit with 1
                raise error.__context__ from None
            raise
        finally:
            sys.stdout.flush()


@contextlib.contextmanager
def written() -> Iterator[None]:
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
        complain(f"standard output cannot be written ({error.strerror}); redirect it elsewhere")
        raise SystemExit(2) from error


def complain(sentence: object) -> None:
    """Print a sentence on standard error, if anything can be printed there.

    It stays one line, and no terminal obeys it: names of files, values of settings and answers of servers are in it.
    """
    try:
        sys.stderr.write(f"limelight: {visible(str(sentence))}\n")
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)


def visible(text: str) -> str:
    r"""Return a text on one line that no terminal obeys: what cannot be printed becomes an escape such as ``\x1b``.

    Bytes of file names that are no characters (see ``os.fsdecode``) become escapes, too.
    """
    return "".join(letter if _is_visible(letter) else _escaped(letter) for letter in text)


def _is_visible(letter: str) -> bool:
    return letter.isprintable() or letter in JOINERS or unicodedata.category(letter) == "Zs"


def _escaped(letter: str) -> str:
    return f"\\x{ord(letter) - 0xDC00:02x}" if "\udc80" <= letter <= "\udcff" else ascii(letter)[1:-1]


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks (see ``codecs.register_error``)."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


def _occupy_missing() -> None:
    """Open standard streams that are closed, so that no library prints into a file or connection with their number.

    They can be read and written no more than before: who writes to them gets an error.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:  # the lowest free number is this one
            os.open(os.devnull, os.O_WRONLY if name == "stdin" else os.O_RDONLY)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, open(descriptor, "r" if name == "stdin" else "w", closefd=False, encoding="utf-8"))  # noqa: SIM115
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")  # its encoding may not have all characters of labels and file names


def _discard(stream: TextIO) -> None:
    """Point a stream that cannot be written to /dev/null; otherwise Python tries again when it ends, and fails."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
