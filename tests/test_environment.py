"""Tests give the same result whatever a developer's shell sets."""

import os
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, settings

from tests.conftest import REPOSITORY

# What a shell may set, and each of which has made a test fail, or would.
ODD = {
    "ALL_PROXY": "http://127.0.0.1:1",
    "CI": "",
    "COLUMNS": "40",
    "COMPOSE_FILE": "nowhere.yml",
    "FORCE_COLOR": "1",
    "GITHUB_ACTIONS": "true",
    "HTTP_PROXY": "http://127.0.0.1:1",
    "KERAS_BACKEND": "torch",
    "LC_ALL": "C",
    "LIMELIGHT_API_KEY": "abc",
    "LIMELIGHT_API_KEYS": "abc",
    "LIMELIGHT_BUNDLE": "/nowhere",
    "LIMELIGHT_LOG_LEVEL": "warning",
    "LIMELIGHT_PORT": "1",
    "LIMELIGHT_UNIX_SOCKET": "/nowhere/socket",
    "NO_COLOR": "1",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
    "PYTHONIOENCODING": "ascii",
    "PYTHONUNBUFFERED": "1",
    "PYTHONWARNINGS": "error",
    "TZ": "Asia/Kathmandu",
    "http_proxy": "http://127.0.0.1:1",
    "limelight_max_queue": "many",
}
TESTS = (
    "tests/e2e/test_server.py::TestObservability::test_the_health_endpoints_report_a_ready_server",
    "tests/service/cli/test_doctor.py",
    "tests/service/http/test_page.py",
    "tests/service/test_settings.py",
    "tests/test_environment.py::test_no_variable_of_the_shell_is_seen",
)


@pytest.mark.ci
def test_tests_pass_in_an_odd_shell() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
    ended = subprocess.run(command, cwd=REPOSITORY, env=os.environ | ODD, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stdout[-5000:]
    assert "passed" in ended.stdout


def test_no_variable_of_the_shell_is_seen() -> None:
    assert os.environ.keys() & ODD.keys() <= {"CI"}  # which pytest reads


def test_no_example_of_a_property_fails_for_being_slow() -> None:
    assert settings.default is not None
    assert settings.default.deadline is None
    assert HealthCheck.too_slow in settings.default.suppress_health_check


@pytest.mark.parametrize(("options", "exit_code"), [([], 0), (["--no-skips"], 1)])
def test_ci_fails_under_a_kernel_without_a_layer_of_the_sandbox(options: list[str], exit_code: int) -> None:
    test = "tests/service/isolation/test_sandbox.py::test_every_layer_that_the_kernel_has_is_granted"
    pytest_without_landlock = [
        sys.executable,
        "-m",
        "tests.refusing",
        "landlock",
        "ENOSYS",
        sys.executable,
        "-m",
        "pytest",
    ]
    ended = subprocess.run(
        [*pytest_without_landlock, "-p", "no:cacheprovider", test, *options],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert ended.returncode == exit_code
    assert "1 skipped" in ended.stdout
    assert "needs a kernel with landlock" in ended.stdout
