"""Privileges and contents of the containers."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.docker.stack import NAME, Stack, docker
from tests.processes import until
from tests.service.isolation import kernel
from tests.service.isolation.test_sandbox import DESCRIPTORS, FILES, NETWORK, PROCESSES

SERVICES = ("gateway", "gateway-exporter", "limelight", "prometheus")
# Runs in a replica: executes each hostile program in a decoder that was taken over, and prints the outcomes.
ATTACKS = """
import asyncio, json, os, sys
os.environ["PYTHONPATH"] = "/tmp"
from service.video.decoder import DecodeLimits
from service.errors import CorruptClip
from service.isolation.processes import DecoderProcesses

async def outcome(decoders, program):
    try:
        await decoders.decode(b"#!python\\n" + program.encode())
    except CorruptClip as error:
        return str(error)

decoders = DecoderProcesses(DecodeLimits(timeout_s=60), memory_bytes=2**30, program="tests.service.isolation.hostile")
acts = json.loads(sys.argv[1])
print(json.dumps([
    decoders.grants.missing,
    {act: asyncio.run(outcome(decoders, program)) for act, program in acts.items()},
]))
decoders.close()
"""


# Runs in a replica: has it classify the sample clip, then prints the processors that each thread there may use.
AFFINITIES = """
import contextlib, pathlib
import httpx
from service.web import sample_clip

httpx.post("http://127.0.0.1:8000/predict", content=sample_clip(), timeout=60).raise_for_status()
for status in pathlib.Path("/proc").glob("[0-9]*/task/*/status"):
    with contextlib.suppress(OSError):  # the thread has just ended
        print(status.read_text().partition("Cpus_allowed_list:")[2].split()[0])
"""


def inspected(container: str) -> dict[str, Any]:
    facts: list[dict[str, Any]] = json.loads(docker("inspect", container))
    return facts[0]


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_runs_without_privileges(fleet: Stack, service: str) -> None:
    for container in fleet.containers(service):
        facts = inspected(container)
        host = facts["HostConfig"]

        assert facts["Config"]["User"].split(":")[0] not in {"", "0", "root"}
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert not host["CapAdd"]
        assert not host["Privileged"]
        assert "no-new-privileges:true" in host["SecurityOpt"]
        assert host["Memory"] > 0
        assert host["PidsLimit"] > 0
        assert host["Init"]
        assert all("size=" in options for options in host.get("Tmpfs", {}).values())


def test_only_the_gateway_is_published(fleet: Stack) -> None:
    published = {
        service
        for service in SERVICES
        for container in fleet.containers(service)
        if any(inspected(container)["NetworkSettings"]["Ports"].values())
    }
    assert published == {"gateway"}


def test_a_replica_can_write_only_to_its_tmpfs(fleet: Stack) -> None:
    program = """
import pathlib
for folder in ("/", "/opt/venv", "/bundles/limelight-1", "/var/tmp", "/tmp"):
    try:
        (pathlib.Path(folder) / "made").touch()
        print(folder)
    except OSError:
        pass
"""
    assert docker("exec", fleet.containers("limelight")[0], "python", "-c", program).split() == ["/tmp"]


def test_a_replica_holds_no_compiler_and_no_training_framework(fleet: Stack) -> None:
    program = """
import importlib.util, shutil
print([name for name in ("tensorflow", "keras", "model_export", "pip") if importlib.util.find_spec(name)],
      [name for name in ("cc", "gcc", "clang", "make") if shutil.which(name)])
"""
    assert docker("exec", fleet.containers("limelight")[0], "python", "-c", program).strip() == "[] []"


def test_a_replica_holds_no_program_that_cannot_run_there(fleet: Stack) -> None:
    replica = fleet.containers("limelight")[0]

    assert docker("exec", replica, "sh", "-c", "ls /opt/venv/bin | grep limelight").split() == ["limelight"]
    assert docker("exec", replica, "limelight", "--version").startswith("limelight ")


def test_every_thread_keeps_to_the_cpuset_of_the_container(fleet: Stack, tiny_bundle: Path) -> None:
    with replica_in_cpuset("0", tiny_bundle) as replica:
        affinities = docker("exec", replica, "python", "-c", AFFINITIES).split()
        threads = docker("exec", replica, "python", "-c", "from service.model.spec import *; print(choose_threads(0))")

    assert len(affinities) >= 3, "the server, the decoders' fork server and a decoder that waits"
    assert set(affinities) == {"0"}
    assert threads.strip() == "1"


@contextlib.contextmanager
def replica_in_cpuset(processors: str, bundle: Path) -> Iterator[str]:
    """Run a replica of the image that ``fleet`` has built, on these processors, until the block ends."""
    options = ["--cpuset-cpus", processors, "--volume", f"{bundle}:/bundles/limelight-1:ro"]
    replica = docker("run", "--detach", "--rm", *options, f"limelight:{NAME}").strip()
    health = ["docker", "exec", replica, "limelight", "health"]
    try:
        until(lambda: subprocess.run(health, capture_output=True, check=False).returncode == 0)
        yield replica
    finally:
        docker("rm", "--force", replica)


def test_the_image_is_small_and_labelled(fleet: Stack, base_bytes: int) -> None:
    image: dict[str, Any] = json.loads(docker("image", "inspect", f"limelight:{NAME}"))[0]

    assert image["Size"] - base_bytes <= 700e6
    assert image["Config"]["Labels"]["org.opencontainers.image.title"] == "Limelight"


def test_the_sandbox_stops_hostile_code_inside_docker_too(fleet: Stack) -> None:
    replica = fleet.containers("limelight")[0]
    code = (REPOSITORY / "tests/service/isolation/hostile.py").read_text(encoding="utf-8")
    folder = "/tmp/tests/service/isolation"
    docker("exec", "-i", replica, "sh", "-c", f"mkdir -p {folder} && cat >{folder}/hostile.py", given=code)
    acts = FILES | DESCRIPTORS | NETWORK | PROCESSES
    missing, outcomes = json.loads(docker("exec", replica, "python", "-c", ATTACKS, json.dumps(acts)))

    assert missing == kernel.missing_layers()
    assert outcomes == dict.fromkeys(acts, "EPERM")
