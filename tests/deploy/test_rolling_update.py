"""deploy/rolling-update.sh against a program ``docker`` whose containers are files. test_fleet.py has the real one."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.processes import until

# Each replica is a file; a new one is healthy. `docker stop` takes until the file `drained` exists.
DOCKER = """#!/bin/sh
cd "$(dirname "$0")/replicas"
case "$*" in
  "compose ps --all --quiet model") echo model ;;
  "compose ps --all --quiet limelight") ls ;;
  *"up "*--scale*) touch new ;;
  "wait model") echo 0 ;;
  "inspect "*Health*) echo healthy ;;
  "inspect "*) echo running 0 ;;
  "stop "*)
    echo stopping >>../stops
    for _ in $(seq 250); do [ -e ../drained ] && break; sleep 0.02; done
    echo stopped >>../stops
    ;;
  "rm "*) rm "$2" ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with one replica, ``old``."""
    (tmp_path / "deploy").mkdir()
    shutil.copy(REPOSITORY / "deploy/rolling-update.sh", tmp_path / "deploy")
    (tmp_path / "replicas").mkdir()
    (tmp_path / "replicas/old").touch()
    (tmp_path / "docker").write_text(DOCKER, encoding="utf-8")
    (tmp_path / "docker").chmod(0o755)
    return tmp_path


@pytest.fixture
def update(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A rolling update that is stopping the old replica."""
    with start(folder) as process:
        until((folder / "stops").exists)
        yield process
        (folder / "drained").touch()


def start(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        ["deploy/rolling-update.sh"],
        cwd=folder,
        env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def replicas(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "replicas").iterdir())


def test_an_update_replaces_the_old_replica(folder: Path, update: "subprocess.Popen[str]") -> None:
    (folder / "drained").touch()

    assert "1 are running" in update.communicate()[0]
    assert (update.returncode, replicas(folder)) == (0, ["new"])


def test_a_second_update_is_refused_while_one_runs(folder: Path, update: "subprocess.Popen[str]") -> None:
    with start(folder) as second:
        said = second.communicate()[0]

    assert (second.returncode, "a rolling update runs already" in said) == (1, True)
    assert replicas(folder) == ["new", "old"]


def test_ctrl_c_lets_the_old_replica_finish_its_requests(folder: Path, update: "subprocess.Popen[str]") -> None:
    os.killpg(update.pid, signal.SIGINT)
    (folder / "drained").touch()
    update.communicate()

    assert (update.returncode, replicas(folder)) == (130, ["new"])
    # A second signal during the first stop would end the replica at once.
    assert (folder / "stops").read_text(encoding="utf-8") == "stopping\nstopped\n" * 2
