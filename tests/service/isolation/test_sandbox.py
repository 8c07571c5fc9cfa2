"""The sandbox, tested from inside: hostile code runs in a real decoder process, and each thing it tries is refused."""

import platform
import subprocess
import sys
import textwrap

import pytest

from service.errors import CorruptClip, DecoderCrashed
from service.isolation import seccomp
from service.isolation.processes import DecoderProcesses
from tests.service.isolation.hostile import take_over

pytestmark = pytest.mark.anyio

FILES = {
    "read a file": "open('/etc/passwd')",
    "read a file in its working directory": "open('LICENSE')",
    "read its environment in /proc": "open('/proc/self/environ')",
    "make a file": "os.open('made', os.O_CREAT | os.O_WRONLY)",
    "make a file without a name": "os.open('/tmp', os.O_TMPFILE | os.O_WRONLY)",
    "make a file in memory": "os.memfd_create('made')",
    "list a directory": "os.listdir('.')",
    "stat a file": "os.stat('/')",
    "remove a file": "os.unlink('made')",
    "make a directory": "os.mkdir('made')",
    "change its working directory": "os.chdir('/')",
}
DESCRIPTORS = {
    "write to the standard output": "os.write(1, b'x')",
    "write to the standard error": "os.write(2, b'x')",
    "write to its fork server": "os.write(3, b'x')",
    "send to its fork server": "refuse(libc.send(3, b'x', 1, 0))",
    "shut half of its channel": "refuse(libc.shutdown(3, 1))",
    "write to its clip": "os.write(4, b'x')",
    "write to another descriptor": "os.write(5, b'x')",
    "map its clip as executable": "refuse(libc.mmap(None, 4096, 5, 2, 4, 0))",
    "make a pipe": "os.pipe()",
    "copy a descriptor": "os.dup(3)",
    "make an epoll instance": "select.epoll()",
}
NETWORK = {
    "connect": "socket.create_connection(('127.0.0.1', 9))",
    "make an Internet socket": "socket.socket()",
    "make a Unix socket": "socket.socket(socket.AF_UNIX)",
    "make a pair of sockets": "socket.socketpair()",
    "make a netlink socket": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
}
PROCESSES = {
    "fork": "os.fork()",
    "replace itself with a program": "os.execv('/bin/true', ['true'])",
    "start a program": "subprocess.run(['/bin/true'])",
    "spawn a program": "os.posix_spawn('/bin/true', ['true'], {})",
    "kill its parent": "os.kill(SERVER, signal.SIGTERM)",
    "kill itself": "os.kill(os.getpid(), signal.SIGTERM)",
    "trace its parent": "refuse(libc.ptrace(16, SERVER, None, None))",
    "read its parent's memory": "refuse(libc.process_vm_readv(SERVER, None, 0, None, 0, 0))",
    "raise its limits": "refuse(libc.setrlimit(resource.RLIMIT_FSIZE, b'\\1' * 16))",
    "allow itself to be traced": "refuse(libc.prctl(4, 1, 0, 0, 0))",
    "raise its priority": "os.nice(-5)",
    "leave its namespace": "refuse(libc.unshare(0x10000000))",
    "make memory executable": "memory = libc.mmap(None, 4096, 3, 0x22, -1, 0); refuse(libc.mprotect(memory, 4096, 5))",
    "map executable memory": "refuse(libc.mmap(None, 4096, 7, 0x22, -1, 0))",
}


async def outcome(decoders: DecoderProcesses, program: str) -> str:
    """Run a program in a decoder process, and return its outcome (see ``hostile.py``)."""
    if decoders.grants.missing:
        pytest.skip(f"this kernel lacks {', '.join(decoders.grants.missing)}")
    with pytest.raises(CorruptClip) as error:
        await decoders.decode(take_over(program))
    return str(error.value)


@pytest.mark.parametrize("act", [*FILES, *DESCRIPTORS, *NETWORK, *PROCESSES])
async def test_a_decoder_is_denied(hostile: DecoderProcesses, act: str) -> None:
    assert await outcome(hostile, {**FILES, **DESCRIPTORS, **NETWORK, **PROCESSES}[act]) == "EPERM"


async def test_a_decoder_cannot_allocate_8_gib(hostile: DecoderProcesses) -> None:
    assert await outcome(hostile, "numpy.ones(2**30)") == "ENOMEM"


async def test_a_decoder_has_only_its_clip_its_channel_and_the_standard_streams_open(hostile: DecoderProcesses) -> None:
    program = """
        def is_open(descriptor):
            try:
                return os.lseek(descriptor, 0, os.SEEK_CUR) >= 0
            except OSError as error:
                return error.errno != errno.EBADF
        raise CorruptClip(str([descriptor for descriptor in range(4096) if is_open(descriptor)]))
    """
    assert await outcome(hostile, program) == "[0, 1, 2, 3, 4]"


async def test_a_decoder_does_not_inherit_the_services_secrets(hostile: DecoderProcesses) -> None:
    assert "PATH" in await outcome(hostile, "raise CorruptClip(str(dict(os.environ)))")
    assert "LIMELIGHT" not in await outcome(hostile, "raise CorruptClip(str(dict(os.environ)))")


async def test_a_decoder_cannot_start_a_thread(hostile: DecoderProcesses) -> None:
    program = """
        try:
            threading.Thread(target=print).start()
        except RuntimeError as error:
            raise CorruptClip(str(error))
    """
    assert await outcome(hostile, program) == "can't start new thread"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="runs machine code for x86-64")
async def test_a_32_bit_system_call_kills_the_decoder(hostile: DecoderProcesses) -> None:
    with pytest.raises(DecoderCrashed):
        await hostile.decode(take_over("getpid_32()"))


async def test_a_decoder_can_compute_and_decode_in_the_sandbox(hostile: DecoderProcesses, clip: bytes) -> None:
    assert await outcome(hostile, "sum(range(10))") == "done"
    assert (await hostile.decode(clip)).facts.frames == 50


def test_the_other_layers_deny_files_and_memory_without_seccomp() -> None:
    program = """
        import errno, os
        import numpy as np
        from service.isolation import sandbox, seccomp

        def error_of(act):
            try:
                act()
            except MemoryError:
                return "ENOMEM"
            except OSError as error:
                return errno.errorcode[error.errno]

        seccomp.install = lambda libc: False
        grants = sandbox.enter_sandbox(memory_bytes=2**30, cpu_s=60)
        print(grants.missing, error_of(os.pipe), error_of(lambda: np.ones(2**30)))
        print(error_of(lambda: os.mkdir("/tmp/made-by-a-clip")) if grants.landlock else "EACCES")
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)

    assert ended.stdout == "['seccomp'] EMFILE ENOMEM\nEACCES\n"


def test_the_filter_exists_for_x86_64_and_aarch64() -> None:
    assert {name for name in seccomp.MACHINES if len(seccomp.program(name)) % 8 == 0} == {"x86_64", "aarch64"}
