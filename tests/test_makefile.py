import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def dry_run(*arguments: str) -> str:
    """Return the commands that make would run, whatever variables these tests run with."""
    environment = {"PATH": os.environ["PATH"]}
    return subprocess.check_output(["make", "-n", *arguments], cwd=REPOSITORY, env=environment, text=True)


@pytest.mark.parametrize(("target", "variable"), [("setup", "VARIANT"), ("test", "JOBS"), ("lock", "UV")])
def test_an_empty_variable_counts_as_not_set(target: str, variable: str) -> None:
    assert dry_run(target, f"{variable}=") == dry_run(target)


@pytest.mark.parametrize(
    ("target", "setting", "used"),
    [("setup", "VARIANT=gpu", "dev-gpu.txt"), ("test", "JOBS=0", "-n 0 "), ("lock", "UV=/opt/uv", "/opt/uv pip")],
)
def test_a_variable_that_is_set_is_used(target: str, setting: str, used: str) -> None:
    assert used in dry_run(target, setting)


# Stands for Python: makes a virtual environment that holds a copy of this program, and installs nothing.
PYTHON = """#!/bin/sh
case "$*" in
  "-m venv "*)
    mkdir -p .venv/bin && cp "$0" .venv/bin/python && echo "command = $0 -m venv --clear $PWD/.venv" >.venv/pyvenv.cfg
    ;;
  "-m pip show "*) exit 1 ;;
esac
"""


def set_up(checkout: Path) -> bool:
    """Run ``make setup`` with a program that stands for Python, and return whether it had anything to do."""
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(checkout.parent / "python")}
    command = ["make", "setup", "VARIANT=cpu"]
    return "Installing" in subprocess.check_output(command, cwd=checkout, env=environment, text=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "python").write_text(PYTHON, encoding="utf-8")
    (tmp_path / "python").chmod(0o755)
    folder = tmp_path / "here [1]"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements"):
        (folder / name).symlink_to(REPOSITORY / name)
    assert set_up(folder)
    return folder


def test_an_environment_is_set_up_once(checkout: Path) -> None:
    assert not set_up(checkout)


@pytest.mark.parametrize("how", ["moved", "copied", "linked"])
def test_the_environment_of_another_place_is_made_anew_and_left_alone_there(
    checkout: Path, tmp_path: Path, how: str
) -> None:
    (checkout / ".venv" / "mark").touch()
    there = tmp_path / "there"
    if how == "moved":
        checkout.rename(there)
    else:
        shutil.copytree(checkout, there, symlinks=True)
    if how == "linked":
        shutil.rmtree(there / ".venv")
        (there / ".venv").symlink_to(checkout / ".venv")

    assert set_up(there)
    assert not set_up(there)
    assert not (there / ".venv" / "mark").exists()
    assert how == "moved" or (checkout / ".venv" / "mark").exists()
