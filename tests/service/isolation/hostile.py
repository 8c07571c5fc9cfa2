"""A fork server whose decoder processes a clip can take over: a clip that begins with ``TAKE_OVER`` is run as Python.

The program's outcome is the text of a ``CorruptClip``: the name of the error that it failed with, for example EPERM, or
"done". The program may also raise ``CorruptClip`` itself, with any text.
"""

import ctypes
import errno
import mmap
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

import numpy

from service.errors import CorruptClip
from service.isolation.forkserver import main
from service.video.decoder import DecodedClip, DecodeLimits, Image, decode_clip

TAKE_OVER = b"#!python\n"


def refuse(result: int) -> None:
    """Raise the C library's last error if ``result`` is -1, which its functions return when they fail."""
    if result == -1:
        raise OSError(ctypes.get_errno(), "")


def _getpid_32() -> Callable[[], int]:
    """Return a function that calls getpid by its 32-bit system call number. It is machine code for x86-64."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))


LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_ssize_t
LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
LIBC.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
LIBC.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
socket.getaddrinfo("127.0.0.1", 9)  # imports a text encoding, which the sandbox would not allow
# The names that a program can use, because nothing can be imported in the sandbox.
TOOLS = {
    "SERVER": os.getpid(),
    "CorruptClip": CorruptClip,
    "libc": LIBC,
    "refuse": refuse,
    "new_page": lambda: LIBC.mmap(None, 4096, mmap.PROT_READ | mmap.PROT_WRITE, 0x22, -1, 0),
    "getpid_32": _getpid_32(),
    **{
        module.__name__: module
        for module in (ctypes, errno, numpy, os, resource, select, signal, socket, subprocess, sys, threading, time)
    },
}


def take_over(program: str) -> bytes:
    """Return a clip that makes its decoder run ``program``."""
    return TAKE_OVER + textwrap.dedent(program).encode()


def decode(source: BinaryIO, limits: DecodeLimits, into: Image) -> DecodedClip:
    """Decode a clip, or run it if it is a program. Takes the place of ``decode_clip``."""
    if source.read(len(TAKE_OVER)) != TAKE_OVER:
        source.seek(0)
        return decode_clip(source, limits, into)
    try:
        exec(source.read(), dict(TOOLS))
    except OSError as error:
        raise CorruptClip(errno.errorcode[error.errno or 0]) from error
    except MemoryError as error:
        raise CorruptClip("ENOMEM") from error
    raise CorruptClip("done")


if __name__ == "__main__":
    main(decode)
