"""What hostile code can do inside a decoder process: it runs in the real sandbox, and is refused."""

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
    "read a file of its folder": "open('LICENSE')",
    "read what the kernel knows of it": "open('/proc/self/environ')",
    "make a file": "os.open('made', os.O_CREAT | os.O_WRONLY)",
    "make a file without a name": "os.open('/tmp', os.O_TMPFILE | os.O_WRONLY)",
    "make a file in memory": "os.memfd_create('made')",
    "list a folder": "os.listdir('.')",
    "look at a file": "os.stat('/')",
    "remove a file": "os.unlink('made')",
    "make a folder": "os.mkdir('made')",
    "go elsewhere": "os.chdir('/')",
}
DESCRIPTORS = {
    "write to the standard output": "os.write(1, b'x')",
    "write to the standard error": "os.write(2, b'x')",
    "write to its fork server": "os.write(3, b'x')",
    "send to its fork server": "refuse(libc.send(3, b'x', 1, 0))",
    "shut half of its channel": "refuse(libc.shutdown(3, 1))",
    "write to its clip": "os.write(4, b'x')",
    "write to one that is not its own": "os.write(5, b'x')",
    "map its clip as code": "refuse(libc.mmap(None, 4096, 5, 2, 4, 0))",
    "make a pipe": "os.pipe()",
    "copy one": "os.dup(3)",
    "wait at several": "select.epoll()",
}
NETWORK = {
    "connect": "socket.create_connection(('127.0.0.1', 9))",
    "make a socket of the Internet": "socket.socket()",
    "make a socket of Unix": "socket.socket(socket.AF_UNIX)",
    "make a pair of sockets": "socket.socketpair()",
    "make a socket to the kernel": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
}
PROCESSES = {
    "fork": "os.fork()",
    "become a program": "os.execv('/bin/true', ['true'])",
    "start a program": "subprocess.run(['/bin/true'])",
    "spawn a program": "os.posix_spawn('/bin/true', ['true'], {})",
    "kill its parent": "os.kill(SERVER, signal.SIGTERM)",
    "kill itself": "os.kill(os.getpid(), signal.SIGTERM)",
    "trace its parent": "refuse(libc.ptrace(16, SERVER, None, None))",
    "read its parent's memory": "refuse(libc.process_vm_readv(SERVER, None, 0, None, 0, 0))",
    "raise its limits": "refuse(libc.setrlimit(resource.RLIMIT_FSIZE, b'\\1' * 16))",
    "be traced again": "refuse(libc.prctl(4, 1, 0, 0, 0))",
    "be favoured": "os.nice(-5)",
    "leave its namespace": "refuse(libc.unshare(0x10000000))",
    "make memory code": "memory = libc.mmap(None, 4096, 3, 0x22, -1, 0); refuse(libc.mprotect(memory, 4096, 5))",
    "map memory as code": "refuse(libc.mmap(None, 4096, 7, 0x22, -1, 0))",
}


async def outcome(decoders: DecoderProcesses, program: str) -> str:
    if decoders.grants.missing:
        pytest.skip(f"this kernel lacks {', '.join(decoders.grants.missing)}")
    with pytest.raises(CorruptClip) as told:
        await decoders.decode(take_over(program))
    return str(told.value)


@pytest.mark.parametrize("act", [*FILES, *DESCRIPTORS, *NETWORK, *PROCESSES])
async def test_a_decoder_cannot(hostile: DecoderProcesses, act: str) -> None:
    assert await outcome(hostile, {**FILES, **DESCRIPTORS, **NETWORK, **PROCESSES}[act]) == "EPERM"


async def test_a_decoder_cannot_take_8_gib(hostile: DecoderProcesses) -> None:
    assert await outcome(hostile, "numpy.ones(2**30)") == "ENOMEM"


async def test_a_decoder_has_nothing_open_but_its_clip_its_channel_and_dead_ends(hostile: DecoderProcesses) -> None:
    program = """
        def is_open(descriptor):
            try:
                return os.lseek(descriptor, 0, os.SEEK_CUR) >= 0
            except OSError as error:
                return error.errno != errno.EBADF
        raise CorruptClip(str([descriptor for descriptor in range(4096) if is_open(descriptor)]))
    """
    assert await outcome(hostile, program) == "[0, 1, 2, 3, 4]"


async def test_a_decoder_does_not_know_the_services_secrets(hostile: DecoderProcesses) -> None:
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


@pytest.mark.skipif(platform.machine() != "x86_64", reason="knows the machine code of x86-64")
async def test_a_system_call_by_its_32_bit_number_kills_the_decoder(hostile: DecoderProcesses) -> None:
    with pytest.raises(DecoderCrashed):
        await hostile.decode(take_over("getpid_32()"))


async def test_honest_work_goes_on(hostile: DecoderProcesses, clip: bytes) -> None:
    assert await outcome(hostile, "sum(range(10))") == "done"
    assert (await hostile.decode(clip)).facts.frames == 50


def test_each_layer_is_a_wall_of_its_own() -> None:
    program = """
        import errno, os
        import numpy as np
        from service.isolation import sandbox, seccomp

        def refusal(act):
            try:
                act()
            except MemoryError:
                return "ENOMEM"
            except OSError as error:
                return errno.errorcode[error.errno]

        seccomp.install = lambda libc: False
        grants = sandbox.enter_sandbox(memory_bytes=2**30, cpu_s=60)
        print(grants.missing, refusal(os.pipe), refusal(lambda: np.ones(2**30)))
        print(refusal(lambda: os.mkdir("/tmp/made-by-a-clip")) if grants.landlock else "EACCES")
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)

    assert ended.stdout == "['seccomp'] EMFILE ENOMEM\nEACCES\n"


def test_the_filter_is_written_for_both_machines() -> None:
    assert {name for name in seccomp.MACHINES if len(seccomp.program(name)) % 8 == 0} == {"x86_64", "aarch64"}
