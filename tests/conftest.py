"""Fixtures for all tests, the options of ``pytest``, and how xdist distributes the tests."""

import gc
import os
import re
import socket
import sys
import time
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from model_export.rendering.figure import render_clip
from tests.tiny_bundle import write_tiny_bundle

if TYPE_CHECKING:
    from xdist.scheduler import Scheduling

REPOSITORY = Path(__file__).resolve().parents[1]

# The variables that tests and the programs that they start can see: those that lead to programs, libraries and devices,
# and those that are meant for the tests. What else a developer's shell sets must not change what the code under test
# does, as LIMELIGHT_PORT, HTTP_PROXY, NO_COLOR, OTEL_SDK_DISABLED, COMPOSE_FILE or PYTHONOPTIMIZE would.
VARIABLES = re.compile(
    "HOME|USER|LOGNAME|PATH|TMPDIR|LD_LIBRARY_PATH|JAVA_HOME|XDG_RUNTIME_DIR|VIRTUAL_ENV|CI|BUILD_NUMBER|"
    "PYTHON(PATH|HOME|DONTWRITEBYTECODE|PYCACHEPREFIX)|(PYTEST|HYPOTHESIS|PLAYWRIGHT|COV|DOCKER|CUDA|NVIDIA)_.*|"
    "LIMELIGHT_(SHARED|SOAK_S|SCREENSHOT|SCREENSHOT_BUNDLE)|TEST_NGINX|"
    "ORT_DISABLE_TELEMETRY"  # set by ``service`` itself
)
FRAMEWORKS = ("keras", "tensorflow", "tf2onnx")
# The most expensive files, in order. The processes start with them, so that all end at about the same time.
EXPENSIVE = (
    "test_real_bundle.py",
    "test_wheel.py",
    "deploy/test_replicas.py",
    "test_training_loop.py",
    "test_fitting.py",
    "test_training.py",
    "model_export/",
    "web/",
    "test_exactness.py",
    "e2e/",
    "test_nasty.py",
    "isolation/test_processes.py",
)
# Reasons to skip a test that installing something cannot remove.
UNAVOIDABLE_SKIPS = re.compile(
    "needs real clips|needs IPv6|this kernel lacks|this file system ignores case|no wheel for this processor|x86-64|"
    "needs node|needs java"
)
# Files that share the exported network of tests/model_export/conftest.py, which takes half a minute to make.
NARROW_NETWORK = re.compile(r"model_export/.*test_(cli|encod\w+|export|features|provenance|revisions|verify)\.py$")


class _SkipFrameworks:
    """An import finder that skips the test or test file that imports a framework."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if name in FRAMEWORKS:
            pytest.skip(f"needs {name}, which --quick leaves out", allow_module_level=True)
        return None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out slow tests and those that need TensorFlow")
    parser.addoption(
        "--newest-releases", action="store_true", help="install the wheel with today's releases, too (test_wheel.py)"
    )
    parser.addoption(
        "--no-skips",
        action="store_true",
        help="as in CI: run every test, and fail if one is skipped because something is not installed",
    )


@pytest.hookimpl(trylast=True)  # pytest itself may see every variable
def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported, hide the developer's environment, and set up what tests use."""
    for name in [name for name in os.environ if not VARIABLES.fullmatch(name)]:
        del os.environ[name]
    time.tzset()
    os.environ["LANG"] = "C.UTF-8"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    # tf2onnx copies the graph before each optimizer, so that it can skip one that fails. Any value turns that off: a
    # conversion then takes two thirds of the time, and an optimizer that fails also fails the test.
    os.environ["TF2ONNX_CATCH_ERRORS"] = "false"
    if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
        # Parallel processes spend a fifth less time in TensorFlow if each of them computes in one thread.
        os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
    # A busy machine is no reason to fail. With --no-skips, as in CI, each run tries the same examples, so that a change
    # is not blamed for what it did not cause.
    busy = [hypothesis.HealthCheck.too_slow]
    reproducible = config.getoption("--no-skips")
    hypothesis.settings.register_profile(
        "limelight", deadline=None, suppress_health_check=busy, derandomize=reproducible, print_blob=True
    )
    hypothesis.settings.load_profile("limelight")
    if config.getoption("--quick"):
        sys.meta_path.insert(0, _SkipFrameworks())


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Move expensive files to the front. Leave out what only CI runs, and with ``--quick`` slow tests."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")
    items.sort(key=_rank)
    unwanted = {"slow"} if config.getoption("--quick") else set()
    if not config.getoption("--no-skips"):
        unwanted.add("ci")
    wanted: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        (left_out if any(marker.name in unwanted for marker in item.iter_markers()) else wanted).append(item)
    items[:] = wanted
    config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "Scheduling":
    """Run the tests of a file in one process, which sets up its fixtures once.

    ``--dist loadgroup`` should do the same, but pytest 9.2 ignores the groups that pytest-xdist 3.8 marks.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "narrow network" if NARROW_NETWORK.search(file) else file

    config.option.loadscopereorder = False  # the order of collection, not by number of tests
    return ByFile(config, log)


def _rank(item: pytest.Item) -> int:
    path = item.path.as_posix()
    return next((rank for rank, part in enumerate(EXPENSIVE) if part in path), len(EXPENSIVE))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if ``--no-skips`` is given and a test was skipped for a reason that can be removed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not session.config.getoption("--no-skips") or reporter is None:
        return
    reasons = {report.longrepr[2] for report in reporter.stats.get("skipped", [])}
    if avoidable := sorted(reason for reason in reasons if not UNAVOIDABLE_SKIPS.search(reason)):
        reporter.write_line(f"--no-skips: tests were skipped: {'; '.join(avoidable)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_collection_finish() -> None:
    """Exempt imported objects from garbage collection: TensorFlow has many, and they live until the process ends."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real clips and split lists, which the project may not publish.

    Tests that use it are skipped if the folder does not exist, and fail if ``LIMELIGHT_SHARED`` names it.
    """
    named = os.environ.get("LIMELIGHT_SHARED")
    folder = (REPOSITORY / (named or "../shared")).resolve()
    if folder.is_dir():
        return folder
    if named:
        pytest.fail(f"LIMELIGHT_SHARED={named} is not a folder")
    pytest.skip("needs real clips: set LIMELIGHT_SHARED to the folder that holds clips/ and splits/")


@pytest.fixture(scope="session")
def ipv6() -> None:
    """Skips the test if the machine has no IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"needs IPv6: {error.strerror}")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a toy network that has the inputs and outputs of the real one."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def clip() -> bytes:
    """A small rendered clip."""
    return render_clip(frames=50, width=160, height=120).data
