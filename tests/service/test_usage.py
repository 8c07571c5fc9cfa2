"""What the whole service uses of the machine, compared with what the kernel tells the parent of its processes."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from model_export.rendering.figure import render_clip
from service.isolation.clip_file import ClipFile
from service.usage import ProcessTree
from tests.e2e.process import running
from tests.processes import until

# Works in a child process for a second, then takes 100 MB, and says so.
BUSY = """
import os, signal, time
child = os.fork()
if child == 0:
    while time.process_time() < 1:
        pass
    memory = b"x" * 100_000_000
    print("done", flush=True)
    signal.pause()
os.waitpid(child, 0)
signal.pause()
"""


def used_by_children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_processes_below_count_while_they_run_and_after_they_have_ended() -> None:
    tree = ProcessTree(memory_file="clip")
    cpu_s, memory = tree.cpu_seconds(), tree.memory_bytes()
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"done\n"
            (grandchild,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
            alive_s, with_child = tree.cpu_seconds(), tree.memory_bytes()
            os.kill(int(grandchild), signal.SIGKILL)
            until(lambda: not Path(f"/proc/{grandchild}").exists())
            waited_for_s = tree.cpu_seconds()
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    ended_s, without = tree.cpu_seconds(), tree.memory_bytes()

    assert cpu_s + 1 <= alive_s <= waited_for_s <= ended_s
    assert memory + 100e6 < with_child < memory + 150e6
    assert without < memory + 50e6


def test_clips_that_are_held_in_memory_count() -> None:
    tree = ProcessTree(memory_file="clip")
    before = tree.memory_bytes()
    with ClipFile() as clip:
        clip.write(bytes(50_000_000))

        assert before + 49e6 < tree.memory_bytes() < before + 110e6  # Python itself may keep the bytes


def test_the_service_counts_its_decoders(tiny_bundle: Path, tmp_path: Path) -> None:
    clip = render_clip(frames=60, width=1280, height=720).data
    before = used_by_children_s()
    with running(tiny_bundle, tmp_path / "log.jsonl", {"DRAIN_DELAY_S": "0"}) as server:
        fresh_s = server.metric("cpu_seconds_total")
        for _ in range(10):
            httpx.post(f"{server.url}/predict", content=clip, timeout=60, trust_env=False).raise_for_status()
        told_s, memory = server.metric("cpu_seconds_total"), server.metric("memory_bytes")
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
    used_s = used_by_children_s() - before

    assert fresh_s < told_s
    assert 0.8 * used_s - 0.5 < told_s <= used_s + 0.1, used_s  # which includes the shutdown
    assert 100e6 < memory < 2e9
