"""The sandbox, tested from inside: hostile code runs in a real decoder process, and each thing it tries is refused."""

import asyncio
import os
import platform
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import CorruptClip, DecoderCrashed
from service.isolation.processes import DecoderProcesses
from tests.processes import decoders, descendants, until
from tests.service.isolation import kernel
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
    "map shared memory": "refuse(libc.mmap(None, 4096, 3, 0x21, -1, 0))",
    "map locked memory": "refuse(libc.mmap(None, 4096, 3, 0x2022, -1, 0))",
    "map huge pages": "refuse(libc.mmap(None, 2**21, 3, 0x40022, -1, 0))",
    "move memory to a chosen address": "refuse(libc.mremap(new_page(), 4096, 4096, 3, new_page()))",
    "read the clock of its parent": "time.clock_gettime(~SERVER << 3 | 2)",
    "get a capability back": "refuse(libc.capset(b'\\x22\\x05\\x08\\x20' + bytes(4), b'\\1' * 24))",
}


async def outcome(decoders: DecoderProcesses, program: str) -> str:
    """Run a program in a decoder process, and return its outcome (see ``hostile.py``)."""
    if "seccomp" in kernel.missing_layers():
        pytest.skip("needs a kernel with seccomp")
    with pytest.raises(CorruptClip) as error:
        await decoders.decode(take_over(program))
    return str(error.value)


def test_every_layer_that_the_kernel_has_is_granted(hostile: DecoderProcesses) -> None:
    lacking = kernel.missing_layers()

    assert hostile.grants.missing == lacking
    assert hostile.grants.landlock == kernel.landlock_version()
    if lacking:
        pytest.skip(f"needs a kernel with {' and '.join(lacking)}")  # which CI has to have


async def test_the_kernel_shows_a_decoder_in_the_sandbox(start_hostile: Callable[..., DecoderProcesses]) -> None:
    if "seccomp" in kernel.missing_layers():
        pytest.skip("needs a kernel with seccomp")
    hanging = asyncio.create_task(start_hostile(30).decode(take_over("while True: pass")))
    # It enters the sandbox after it has been named; seccomp is its last layer.
    await asyncio.to_thread(until, lambda: any(kernel.status(pid)["Seccomp"] == "2" for pid in decoders(os.getpid())))
    (decoder,) = decoders(os.getpid())
    status, limits = kernel.status(decoder), kernel.limits(decoder)
    oom_score_adj = Path(f"/proc/{decoder}/oom_score_adj").read_text(encoding="utf-8")
    hanging.cancel()

    none = "0000000000000000"
    assert {name: status[name] for name in ("NoNewPrivs", "Threads", "CapInh", "CapPrm", "CapEff", "CapAmb")} == {
        "NoNewPrivs": "1",
        "Threads": "1",
        **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapAmb"), none),
    }
    if int(kernel.status()["CapEff"], 16) & 1 << 8:  # CAP_SETPCAP, without which no process can change its bounding set
        assert status["CapBnd"] == none
    names = ("Max processes", "Max file size", "Max open files", "Max core file size")
    assert [limits[name] for name in names] == ["0", "0", "0", "0"]
    assert 31 < int(limits["Max cpu time"]) < 40  # the clip's 30 s, one more, and what the warm-up took
    if os.access("/proc/self/oom_score_adj", os.W_OK):
        assert oom_score_adj == "1000\n"
    memory_bytes = 1024 * int(status["VmSize"].split()[0])
    assert 2**30 - 2**25 < int(limits["Max address space"]) - memory_bytes <= 2**30


@pytest.mark.parametrize(
    ("refused", "error", "missing"),
    [
        ("landlock", "ENOSYS", "landlock"),
        ("landlock", "EOPNOTSUPP", "landlock"),  # turned off when the kernel was started
        ("landlock_ruleset", "EINVAL", "landlock"),
        ("landlock_restrict", "E2BIG", "landlock"),
        ("seccomp", "EINVAL", "seccomp"),
        ("capset", "EPERM", "no_capabilities"),
    ],
)
def test_the_service_does_not_start_under_a_kernel_that_refuses_a_required_layer(
    refused: str, error: str, missing: str
) -> None:
    if kernel.missing_layers():
        pytest.skip(f"needs a kernel with {' and '.join(kernel.missing_layers())}")
    if refused == "capset" and kernel.status()["CapPrm"].strip("0") == "":
        pytest.skip("this kernel lacks capabilities for this user, who thus has none to drop")
    program = "from service.isolation.processes import *; start_decoders(DecodeLimits(), memory_bytes=2**30, {})"
    start = [sys.executable, "-m", "tests.refusing", refused, error, sys.executable, "-c"]
    tolerant = subprocess.run([*start, program.format("")], capture_output=True, text=True, check=True)
    strict = subprocess.run(
        [*start, program.format("require_sandbox=True")], capture_output=True, text=True, check=False
    )

    assert tolerant.stderr == f"the decoder sandbox lacks {missing}; `limelight doctor` shows the remedies\n"
    assert strict.returncode == 1
    assert f"LIMELIGHT_REQUIRE_SANDBOX is set, but this system lacks {missing};" in strict.stderr


@pytest.mark.parametrize("act", [*FILES, *DESCRIPTORS, *NETWORK, *PROCESSES])
async def test_a_decoder_is_denied(hostile: DecoderProcesses, act: str) -> None:
    assert await outcome(hostile, {**FILES, **DESCRIPTORS, **NETWORK, **PROCESSES}[act]) == "EPERM"


async def test_a_decoder_can_advise_the_kernel_to_use_huge_pages_and_nothing_else(hostile: DecoderProcesses) -> None:
    program = """
        page, tolerated = new_page(), []
        for advice in range(256):
            if libc.madvise(page, 4096, advice) == 0 or ctypes.get_errno() != errno.EPERM:
                tolerated.append(advice)
        raise CorruptClip(str(tolerated))
    """
    assert await outcome(hostile, program) == "[14]"


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


async def test_a_decoder_inherits_no_variable_but_those_that_lead_to_its_code(hostile: DecoderProcesses) -> None:
    inherited = (await outcome(hostile, "raise CorruptClip(' '.join(os.environ))")).split()

    needed = {"HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH"}
    # Python sets LC_CTYPE itself (PEP 538).
    chosen = {"GLIBC_TUNABLES", "LC_CTYPE", "OPENBLAS_NUM_THREADS", "ORT_DISABLE_TELEMETRY"}
    assert {"PATH", "PYTHONPATH"} <= {*inherited} <= needed | chosen


async def test_the_standard_streams_of_a_decoder_lead_nowhere(start_hostile: Callable[..., DecoderProcesses]) -> None:
    others = {pid for generation in descendants(os.getpid()) for pid in generation}
    start_hostile(60)
    (server,) = {*descendants(os.getpid())[0]} - others
    ((waiting,), *_) = descendants(server)  # the process that is forked ahead, which one may look at

    def descriptors() -> dict[str, str]:
        return {file.name: str(file.readlink()).partition(":")[0] for file in Path(f"/proc/{waiting}/fd").iterdir()}

    await asyncio.to_thread(until, lambda: descriptors() == {**dict.fromkeys("012", os.devnull), "3": "socket"})


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


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_other_layers_deny_files_and_memory_without_seccomp() -> None:
    program = """
        import ctypes, errno, os, resource
        import numpy as np
        from service.isolation import sandbox, seccomp

        def error_of(act):
            try:
                act()
            except MemoryError:
                return "ENOMEM"
            except OSError as error:
                return errno.errorcode[error.errno]

        sandbox.die_with_parent(os.getppid())
        resource.setrlimit(resource.RLIMIT_CPU, (7, 7))  # a limit that is lower is kept
        seccomp.install = lambda libc: False
        grants = sandbox.enter_sandbox(memory_bytes=2**30, cpu_s=60)
        print(grants.missing, error_of(os.pipe), error_of(lambda: np.ones(2**30)))
        print(error_of(lambda: os.mkdir("/tmp/made-by-a-clip")) if grants.landlock else "EACCES")
        signal = ctypes.c_int()
        ctypes.CDLL(None).prctl(2, ctypes.byref(signal), 0, 0, 0)  # PR_GET_PDEATHSIG
        print(resource.getrlimit(resource.RLIMIT_CPU), signal.value, ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))  # dumpable
    """
    missing = [layer for layer in kernel.missing_layers() if layer != "seccomp"] + ["seccomp"]

    assert run(program).stdout == f"{missing} EMFILE ENOMEM\nEACCES\n(7, 7) 9 0\n"


@pytest.mark.parametrize(("parent", "exit_code"), [("os.getppid()", 0), ("0", 1)])
def test_a_process_whose_parent_has_ended_ends(parent: str, exit_code: int) -> None:
    program = f"import os; from service.isolation.sandbox import die_with_parent; die_with_parent({parent})"

    assert run(program).returncode == exit_code
