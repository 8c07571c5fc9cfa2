"""The health check of the image, which reads the variables of the settings by itself."""

import json
import os
import subprocess
import sys

import pytest

from service.cli.health import endpoint_of
from service.settings import Settings

ENVIRONMENTS = [
    {},
    {"LIMELIGHT_HOST": "::", "LIMELIGHT_PORT": "9000"},
    {"limelight_host": "localhost", "Limelight_Port": " 9000 "},
    {"LIMELIGHT_UNIX_SOCKET": "/run/limelight.sock", "LIMELIGHT_PORT": "9000"},
    {"LIMELIGHT_HOST": "", "LIMELIGHT_PORT": "", "LIMELIGHT_UNIX_SOCKET": ""},
    {"LIMELIGHT_HOST": " ", "LIMELIGHT_PORT": "\n", "LIMELIGHT_UNIX_SOCKET": "\t"},
    {"LIMELIGHT_HOST": " ::\n", "LIMELIGHT_UNIX_SOCKET": " /run/limelight.sock\n"},
    {"LIMELIGHT_PORT": "tcp://10.96.12.7:8000"},
]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_it_reads_the_variables_as_the_settings_do(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.upper().startswith("LIMELIGHT_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings, endpoint = Settings(), endpoint_of(os.environ)

    assert (endpoint.host, endpoint.port) == (settings.host, settings.port)
    assert endpoint.unix_socket == (settings.unix_socket and str(settings.unix_socket))


def test_it_imports_nothing_large() -> None:
    code = "import json, sys, service.cli.health; print(json.dumps(sorted(sys.modules)))"
    modules = set(json.loads(subprocess.check_output([sys.executable, "-c", code])))

    assert "service.http.listening" in modules
    assert modules.isdisjoint({"pydantic", "pydantic_settings", "typer", "rich", "httpx", "asyncio", "numpy"})
