import os
import shutil
import subprocess

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
