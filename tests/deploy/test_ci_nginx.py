"""`.ci/nginx` on machines of other people, with programs that stand in for nginx and apt."""

import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

NEW, OLD = "echo nginx version: nginx/1.29.0 >&2", "echo nginx version: nginx/1.22.1 >&2"
# Downloads nothing, so that what should be unpacked is missing.
APT = 'echo "$@" >>"$(dirname "$0")/asked"'


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def asked_for_nginx(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{folder}/bin:/usr/bin:/bin", "TMPDIR": str(folder), **variables}
    return subprocess.run(
        [REPOSITORY / ".ci" / "nginx"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("home", [{}, {"HOME": "/proc"}])
def test_the_machines_own_nginx_is_used_if_it_is_new(tmp_path: Path, home: dict[str, str]) -> None:
    nginx = program(tmp_path / "bin" / "nginx", NEW)

    assert asked_for_nginx(tmp_path, **home).stdout == f"{nginx}\n"


def test_the_cached_one_is_used_without_apt(tmp_path: Path) -> None:
    program(tmp_path / "bin" / "nginx", OLD)
    program(tmp_path / "bin" / "apt-get", APT)
    cached = program(tmp_path / "home" / ".cache" / "limelight" / "nginx" / "nginx", NEW)

    assert asked_for_nginx(tmp_path, HOME=f"{tmp_path}/home").stdout == f"{cached}\n"
    assert not (tmp_path / "bin" / "asked").exists()


def test_half_a_cached_one_is_never_used(tmp_path: Path) -> None:
    program(tmp_path / "bin" / "nginx", OLD)
    program(tmp_path / "bin" / "apt-get", APT)
    cache = tmp_path / "home" / ".cache" / "limelight"
    program(cache / "nginx" / "nginx", "echo a library is missing >&2; exit 127")
    done = asked_for_nginx(tmp_path, HOME=f"{tmp_path}/home")

    assert done.returncode != 0
    assert done.stdout == ""
    assert (tmp_path / "bin" / "asked").exists()
    assert [path.name for path in cache.iterdir()] in ([], ["nginx"])  # nothing that was unpacked is left
