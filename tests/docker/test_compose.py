"""What Compose makes of its files, overlays and variables. Nothing is started."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.docker.stack import copy_project


@pytest.fixture
def project(engine: None, tmp_path: Path) -> Path:
    copy_project(tmp_path)
    return tmp_path


def services(project: Path, **variables: str) -> dict[str, Any]:
    """Return Compose's services, with ``variables`` in ``.env``."""
    (project / ".env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()), encoding="utf-8")
    environment = {name: os.environ[name] for name in ("PATH", "HOME")}
    command = ["docker", "compose", "--profile", "*", "config", "--format", "json"]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


@pytest.mark.parametrize("key", ["$ecretKey123", "abc$d", "${HOME}", "a#b c", "$$", "'quoted'"])
def test_a_key_reaches_the_service_as_it_was_written(project: Path, key: str) -> None:
    (project / "limelight.env").write_text(f"LIMELIGHT_API_KEYS={key}\n", encoding="utf-8")
    replica = services(project)["limelight"]

    assert replica["environment"]["LIMELIGHT_API_KEYS"] == key.replace("$", "$$")  # as `config` writes a `$`


def test_a_quoted_password_reaches_grafana_as_it_was_written(project: Path) -> None:
    grafana = services(project, GRAFANA_PASSWORD="'a$b${c}#d'")["grafana"]

    assert grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD"] == "a$$b$${c}#d"


def test_grafana_knows_the_address_at_which_the_gateway_serves_it(project: Path) -> None:
    plain = services(project)["grafana"]["environment"]
    other = services(project, GATEWAY_PORT="9000", GATEWAY_NAME="limelight.example")["grafana"]["environment"]
    files = "docker-compose.yml:docker-compose.tls.yml"
    tls = services(project, COMPOSE_FILE=files, GATEWAY_NAME="limelight.example")["grafana"]["environment"]

    assert plain["GF_SERVER_ROOT_URL"] == "http://localhost:8000/grafana/"
    assert "GF_SECURITY_COOKIE_SECURE" not in plain
    assert other["GF_SERVER_ROOT_URL"] == "http://limelight.example:9000/grafana/"
    assert tls["GF_SERVER_ROOT_URL"] == "https://limelight.example:443/grafana/"
    assert tls["GF_SECURITY_COOKIE_SECURE"] == "true"


def test_each_service_of_the_documented_file_has_a_gpu_of_its_own(project: Path) -> None:
    pages = (REPOSITORY / "docs/operations.md").read_text(encoding="utf-8")
    (printed,) = re.findall(r"^```yaml\n(services:.*?)^```", pages, re.MULTILINE | re.DOTALL)
    (project / "docker-compose.gpu1.yml").write_text(printed, encoding="utf-8")
    found = services(project, COMPOSE_FILE="docker-compose.yml:docker-compose.gpu.yml:docker-compose.gpu1.yml")

    first, second = found["limelight"], found["limelight-gpu1"]
    gpus = [one["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for one in (first, second)]
    assert gpus == [["0"], ["1"]]
    assert second["networks"]["inside"]["aliases"] == ["limelight"]
    assert second["environment"]["LIMELIGHT_DEVICE"] == first["environment"]["LIMELIGHT_DEVICE"] == "cuda"
    for same in ("image", "volumes", "read_only", "cap_drop", "mem_limit", "depends_on", "stop_grace_period"):
        assert second[same] == first[same]


def test_an_overlay_is_added_to_those_in_use(project: Path) -> None:
    pages = (REPOSITORY / "docs/operations.md").read_text(encoding="utf-8")
    lines = re.findall(r"^echo '(COMPOSE_(?:FILE|PROFILES)=.*)' >>\.env", pages, re.MULTILINE)
    (project / ".env").write_text("\n".join(lines), encoding="utf-8")
    command = ["docker", "compose", "config", "--services"]
    found = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout.split()

    assert {"limelight", "gateway", "grafana", "jaeger", "alertmanager"} <= {*found}
    assert services(project, COMPOSE_FILE=":".join(sorted(file.name for file in project.glob("docker-compose*.yml"))))
