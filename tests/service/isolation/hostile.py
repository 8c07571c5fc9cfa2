"""A fork server whose decoders can be taken over: a clip that begins with TAKE_OVER is a program, and they run it.

What becomes of the program comes back as a CorruptClip: "done", what it was refused with, or what it chose to say.
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
    """Raise what the C library's function that gave this failed with, if it did."""
    if result == -1:
        raise OSError(ctypes.get_errno(), "")


def _getpid_32() -> Callable[[], int]:
    """The machine code of getpid() by way of the 32-bit system calls, on x86-64."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))


LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_ssize_t
LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
LIBC.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
socket.getaddrinfo("127.0.0.1", 9)  # imports an encoding
# Whatever a program may want: in the sandbox nothing can be imported any more.
TOOLS = {
    "SERVER": os.getpid(),
    "CorruptClip": CorruptClip,
    "libc": LIBC,
    "refuse": refuse,
    "getpid_32": _getpid_32(),
    **{
        module.__name__: module
        for module in (ctypes, errno, numpy, os, resource, select, signal, socket, subprocess, sys, threading, time)
    },
}


def take_over(program: str) -> bytes:
    return TAKE_OVER + textwrap.dedent(program).encode()


def decode(source: BinaryIO, limits: DecodeLimits, into: Image) -> DecodedClip:
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
