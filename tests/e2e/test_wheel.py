"""The wheel as a stranger's machine gets it: built, installed with either end of its bounds, and run.

Nothing of the checkout is on the path of the programs that run here.
"""

import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from model_export.rendering.figure import render_clip
from service.http.server import SHUTDOWN_MARGIN_S
from service.settings import MAX_CONNECTIONS, Settings
from tests.conftest import REPOSITORY
from tests.e2e.process import PATIENCE_S, running

pytestmark = pytest.mark.slow

MINORS = ("3.11", "3.12", "3.13")
THIS = f"{sys.version_info.major}.{sys.version_info.minor}"
CONTAINERS = {"mp4": "libx264", "matroska": "libx264", "mpegts": "libx264", "mpeg": "mpeg2video", "avi": "mpeg4"}
# Commands that need a library which an installation without its extra lacks, and the extra.
WITHOUT_EXTRA = {
    "limelight serve": "cpu",
    "limelight predict clip.mp4 --bundle bundle": "cpu",
    "limelight doctor": "cpu",
    "limelight demo": "cpu",
    "limelight-model fetch-weights": "export",
    "limelight-model features --videos .": "export",
    "limelight-model train --videos .": "export",
    "limelight-model evaluate --videos .": "export",
    "limelight-model test --videos .": "export",
    "limelight-model export": "export",
    "limelight-model verify --videos .": "export",
}


@dataclass(frozen=True)
class Environment:
    """A virtual environment that holds nothing but what a test installed."""

    path: Path

    @property
    def packages(self) -> Path:
        (folder,) = self.path.glob("lib/python3*/site-packages")
        return folder

    def install(self, *arguments: object) -> None:
        pip("install", "--no-compile", *arguments, environment=self)

    def link(self, other: "Environment") -> None:
        """Add the packages of another environment, without the time and the space of a second installation."""
        shutil.copytree(other.packages, self.packages, copy_function=os.link, dirs_exist_ok=True)

    def run(self, command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in a folder."""
        program, *arguments = command.split()
        return subprocess.run(  # noqa: PLW1510 - the caller looks at the exit code
            [self.path / "bin" / program, *arguments],
            cwd=folder,
            env=clean_environment() | variables,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )


def clean_environment() -> dict[str, str]:
    """Return the variables of these tests, without those of Python and of Limelight."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LIMELIGHT_"))}


def pip(*arguments: object, environment: Environment) -> None:
    """Run this environment's pip for another one, and skip the test if no package index can be reached."""
    command = [sys.executable, "-m", "pip", "--python", str(environment.path / "bin" / "python")]
    ended = subprocess.run([*command, *map(str, arguments)], check=False, capture_output=True, text=True)
    if ended.returncode and "connection broken" in ended.stderr:
        pytest.skip("needs a package index")
    assert ended.returncode == 0, ended.stderr


def interpreter(minor: str) -> str | None:
    """Return the path of a Python that can make virtual environments; None if the machine has none."""
    if minor == THIS:
        return sys.executable
    of_pyenv = sorted(map(str, Path.home().glob(f".pyenv/versions/{minor}.*/bin/python")))
    for candidate in (shutil.which(f"python{minor}"), *of_pyenv):
        # A shim of pyenv is found, but fails if its version is not active.
        command = [candidate or "", "-c", "import venv"]
        if candidate and subprocess.run(command, check=False, capture_output=True).returncode == 0:
            return candidate
    return None


def new_environment(path: Path, minor: str = THIS) -> Environment:
    python = interpreter(minor)
    assert python
    subprocess.run([python, "-m", "venv", "--without-pip", str(path)], check=True)
    return Environment(path)


def build(target: str, source: Path, output: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(output)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (file,) = output.glob({"wheel": "*.whl", "sdist": "*.tar.gz"}[target])
    return file


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "installed" in metafunc.fixturenames:
        lists = ["newest", "lowest", *(["today"] if metafunc.config.getoption("newest_releases") else [])]
        every = metafunc.config.getoption("no_skips")
        minors = [minor for minor in MINORS if minor == THIS or (every and interpreter(minor))]
        cases = [
            # Those of this Python with the newest versions are enough for `make test`.
            pytest.param((m, v), id=f"{m}-{v}", marks=pytest.mark.ci if m != THIS or v == "lowest" else ())
            for m in minors
            for v in lists
        ]
        metafunc.parametrize("installed", cases, indirect=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", REPOSITORY, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel with one of the lists, on one of the Pythons."""
    minor, versions = request.param
    environment = new_environment(tmp_path_factory.mktemp("installed") / "venv", minor)
    if versions == "today":
        environment.install(f"{wheel}[cpu,otel]")
        return environment
    if (minor, versions) == (THIS, "newest"):
        environment.link(request.getfixturevalue("libraries"))
    else:
        environment.install("--require-hashes", "-r", REPOSITORY / "requirements" / f"wheel-{versions}.txt")
    environment.install("--no-deps", wheel)
    return environment


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The newest libraries, without Limelight."""
    environment = new_environment(tmp_path_factory.mktemp("libraries") / "venv")
    environment.install("--require-hashes", "-r", REPOSITORY / "requirements" / "wheel-newest.txt")
    return environment


@pytest.fixture(scope="module")
def plain(libraries: Environment, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Limelight without ONNX Runtime and TensorFlow."""
    environment = new_environment(tmp_path_factory.mktemp("plain") / "venv")
    for library in libraries.packages.iterdir():
        if not library.name.startswith("onnxruntime"):
            (environment.packages / library.name).symlink_to(library)
    environment.install("--no-deps", wheel)
    return environment


@pytest.fixture(scope="module")
def apart(libraries: Environment, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with Limelight in a folder of its own."""
    environment = new_environment(tmp_path_factory.mktemp("apart") / "venv")
    (environment.packages / "libraries.pth").write_text(f"{libraries.packages}\n", encoding="utf-8")
    environment.install("--no-deps", wheel)
    return environment


@pytest.fixture
def fresh(apart: Environment, tmp_path: Path) -> Environment:
    """A copy of such an environment, which a test may damage."""
    environment = Environment(tmp_path / "venv")
    shutil.copytree(apart.path, environment.path, symlinks=True)
    for program in ("limelight", "limelight-model"):
        script = environment.path / "bin" / program
        script.write_text(
            script.read_text(encoding="utf-8").replace(str(apart.path), str(environment.path)), encoding="utf-8"
        )
    return environment


def test_the_wheel_decodes_a_clip_of_each_container_with_the_newest_and_the_lowest_versions(
    installed: Environment, tiny_bundle: Path, tmp_path: Path
) -> None:
    command = [str(installed.path / "bin" / "limelight")]
    variables = {"PYTHONPATH": ""}
    with running(tiny_bundle, tmp_path / "log", {}, command=command, variables=variables, folder=tmp_path) as server:
        for container, codec in CONTAINERS.items():
            data = render_clip(frames=50, width=160, height=120, codec=codec, container=container).data
            answer = httpx.post(f"{server.url}/predict", content=data, timeout=PATIENCE_S, trust_env=False)

            assert answer.status_code == 200, (container, answer.text)
            assert len(answer.json()["frames"]) == 40


def test_the_commands_work_with_the_newest_and_the_lowest_versions(
    installed: Environment, tiny_bundle: Path, tmp_path: Path, clip: bytes
) -> None:
    (tmp_path / "clip.mp4").write_bytes(clip)

    for program in ("limelight", "limelight-model"):
        assert re.fullmatch(rf"{program} \d+\.\d+\.\d+\n", installed.run(f"{program} --version", tmp_path).stdout)
    doctor = installed.run(f"limelight doctor --bundle {tiny_bundle}", tmp_path)
    assert doctor.returncode == 0, doctor.stdout
    refused = installed.run("limelight serve", tmp_path, LIMELIGHT_MAX_BODY_BYTES="nan")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    predicted = installed.run(f"limelight predict clip.mp4 --bundle {tiny_bundle} --overlay where.gif", tmp_path)
    assert "50 frames of h264" in predicted.stdout, predicted.stderr
    assert (tmp_path / "where.gif").stat().st_size > 0


def test_the_sdist_builds_the_same_wheel_and_holds_what_its_pages_link_to(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", REPOSITORY, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("limelight-*")

    assert build("wheel", source, tmp_path / "wheel").read_bytes() == wheel.read_bytes()
    for page in [*source.glob("*.md"), *source.glob("docs/**/*.md")]:
        targets = re.findall(
            r"\]\((?!https?:|#)([^)#]+)", re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        )

        assert [target for target in targets if not (page.parent / target).exists()] == [], page


class TestWithoutItsExtra:
    @pytest.mark.parametrize(
        "command",
        [
            pytest.param(
                command, marks=() if command in {"limelight serve", "limelight-model export"} else pytest.mark.ci
            )
            for command in WITHOUT_EXTRA
        ],
    )
    def test_a_command_that_needs_it_names_it_in_one_sentence(
        self, plain: Environment, tiny_bundle: Path, tmp_path: Path, clip: bytes, command: str
    ) -> None:
        (tmp_path / "clip.mp4").write_bytes(clip)
        (tmp_path / "bundle").symlink_to(tiny_bundle)
        ended = plain.run(command, tmp_path, LIMELIGHT_PORT="0", KERAS_HOME=str(tmp_path))

        assert ended.returncode == 2, ended.stderr
        (sentence,) = ended.stderr.splitlines()
        assert f"pip install 'limelight[{WITHOUT_EXTRA[command]}]'" in sentence

    @pytest.mark.ci
    def test_help_and_version_work(self, plain: Environment, tmp_path: Path) -> None:
        for program in ("limelight", "limelight-model"):
            for option in ("--help", "--version"):
                assert plain.run(f"{program} {option}", tmp_path).returncode == 0
        for command in WITHOUT_EXTRA:
            assert plain.run(f"{' '.join(command.split()[:2])} --help", tmp_path).returncode == 0

    def test_what_is_left_of_two_builds_of_onnx_runtime_counts_as_missing(
        self, plain: Environment, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        """As after ``pip uninstall`` of one of two builds, which share files."""
        left = plain.packages / "onnxruntime" / "capi"
        left.mkdir(parents=True)
        ended = plain.run(f"limelight doctor --bundle {tiny_bundle}", tmp_path)

        assert ended.returncode == 2
        assert "pip install 'limelight[cpu]'" in ended.stderr


class TestAnotherPackageOfTheSameName:
    @pytest.mark.parametrize(
        ("program", "package"),
        [("limelight", "service"), ("limelight-model", "service"), ("limelight-model", "model_export")],
    )
    @pytest.mark.parametrize("file", ["{}/__init__.py", "{}.py"])
    def test_on_pythonpath_is_named(
        self, fresh: Environment, tmp_path: Path, program: str, package: str, file: str
    ) -> None:
        other = tmp_path / "other" / file.format(package)
        other.parent.mkdir(parents=True)
        other.write_text("raise SystemExit('the other package ran')\n", encoding="utf-8")
        ended = fresh.run(f"{program} --version", tmp_path, PYTHONPATH=str(tmp_path / "other"))

        assert_refused(ended, program, str(other))

    def test_in_the_current_folder_does_no_harm(self, fresh: Environment, tmp_path: Path, tiny_bundle: Path) -> None:
        (tmp_path / "service").mkdir()
        (tmp_path / "service" / "__init__.py").write_text(
            "raise SystemExit('the other package ran')\n", encoding="utf-8"
        )

        assert fresh.run(f"limelight doctor --bundle {tiny_bundle}", tmp_path).returncode == 0

    def test_on_a_path_that_python_ignores_does_no_harm(
        self, fresh: Environment, tmp_path: Path, tiny_bundle: Path, clip: bytes
    ) -> None:
        (tmp_path / "clip.mp4").write_bytes(clip)
        (tmp_path / "service.py").write_text("raise SystemExit('the other package ran')\n", encoding="utf-8")
        command = f"python -I {fresh.path}/bin/limelight predict clip.mp4 --bundle {tiny_bundle}"
        ended = fresh.run(command, tmp_path, PYTHONPATH=str(tmp_path))

        assert ended.returncode == 0, ended.stderr

    def test_that_a_pth_file_loads_is_named(self, fresh: Environment, tmp_path: Path) -> None:
        """As setuptools writes them for namespace packages."""
        line = "import sys, types; sys.modules.setdefault('service', types.ModuleType('service'))\n"
        (fresh.packages / "other-nspkg.pth").write_text(line, encoding="utf-8")
        ended = fresh.run("limelight --version", tmp_path)

        assert_refused(ended, "limelight", str(fresh.packages), ".pth")

    def test_installed_over_links_to_a_cache_is_named(self, fresh: Environment, tmp_path: Path) -> None:
        """As uv installs with ``--link-mode symlink``."""
        shutil.copytree(fresh.packages, tmp_path / "cache")
        for file in filter(Path.is_file, [*fresh.packages.rglob("*")]):
            file.unlink()
            file.symlink_to(tmp_path / "cache" / file.relative_to(fresh.packages))
        assert fresh.run("limelight --version", tmp_path).returncode == 0
        fresh.install("--no-deps", "--no-index", other_wheel(tmp_path, "service/settings.py"))
        ended = fresh.run("limelight --version", tmp_path)

        assert_refused(ended, "limelight", str(fresh.packages / "service" / "settings.py"), "other-1")

    @pytest.mark.parametrize("module", ["__init__.py", "settings.py", "errors/__init__.py", "settings.abi3.so"])
    def test_installed_over_limelight_is_named(self, fresh: Environment, tmp_path: Path, module: str) -> None:
        fresh.install("--no-deps", "--no-index", other_wheel(tmp_path, f"service/{module}"))
        ended = fresh.run("limelight --version", tmp_path)

        assert_refused(ended, "limelight", str(fresh.packages / "service"))

    def test_removed_together_with_files_of_limelight_is_named(self, fresh: Environment, tmp_path: Path) -> None:
        fresh.install("--no-deps", "--no-index", other_wheel(tmp_path, "service/__init__.py", "service/settings.py"))
        pip("uninstall", "--yes", "other", environment=fresh)
        ended = fresh.run("limelight --version", tmp_path)

        assert_refused(ended, "limelight", str(fresh.packages / "service" / "__init__.py"), "is missing")

    def test_beside_limelight_does_no_harm(self, fresh: Environment, tmp_path: Path) -> None:
        fresh.install("--no-deps", "--no-index", other_wheel(tmp_path, "service/client.py"))

        assert fresh.run("limelight --version", tmp_path).returncode == 0

    def test_lists_of_files_that_cannot_be_read_do_no_harm(self, fresh: Environment, tmp_path: Path) -> None:
        with (fresh.packages / "service" / "settings.py").open("a", encoding="utf-8") as file:
            file.write("# changed\n")
        (record,) = fresh.packages.glob("limelight-*/RECORD")
        record.write_bytes(record.read_bytes() + b"\n\xff\n")
        (fresh.packages / "other-1.dist-info" / "RECORD").mkdir(parents=True)

        assert fresh.run("limelight --version", tmp_path).returncode == 0

    def test_a_file_that_was_changed_by_hand_is_accepted(self, fresh: Environment, tmp_path: Path) -> None:
        with (fresh.packages / "service" / "settings.py").open("a", encoding="utf-8") as file:
            file.write("# changed\n")

        assert fresh.run("limelight --version", tmp_path).returncode == 0


def assert_refused(ended: subprocess.CompletedProcess[str], program: str, *parts: str) -> None:
    assert ended.returncode == 2, ended.stderr
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith(f"{program}: ")
    assert "pipx" in sentence
    for part in parts:
        assert part in sentence


def other_wheel(folder: Path, *files: str) -> Path:
    """Write a wheel of a distribution called ``other``."""
    path = folder / "other-1-py3-none-any.whl"
    metadata = {
        "other-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: other\nVersion: 1\n",
        "other-1.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    contents = dict.fromkeys(files, "mine = True\n") | metadata
    record = "".join(f"{name},,\n" for name in [*contents, "other-1.dist-info/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in (contents | {"other-1.dist-info/RECORD": record}).items():
            archive.writestr(name, text)
    return path


class TestWithoutDocker:
    """The page docs/without-docker.md, run as it is printed, with folders of a test instead of the machine's.

    systemd cannot run here: a stand-in writes down what it is told, and the unit's command is started by the test.
    """

    PAGE = REPOSITORY / "docs" / "without-docker.md"
    UNIT = REPOSITORY / "deploy" / "systemd" / "limelight@.service"

    @pytest.mark.ci
    def test_its_commands_lead_to_a_running_service(self, tmp_path: Path, tiny_bundle: Path, clip: bytes) -> None:
        checkout, root, programs = (tmp_path / name for name in ("checkout", "root", "programs"))
        checkout.mkdir()
        for name in ("README.md", "LICENSE", "pyproject.toml", "limelight_start.py", "service", "model_export"):
            (checkout / name).symlink_to(REPOSITORY / name)
        for name in ("requirements", "deploy"):
            (checkout / name).symlink_to(REPOSITORY / name)
        (checkout / "bundle").symlink_to(tiny_bundle)
        programs.mkdir()
        (programs / "python3").symlink_to(sys._base_executable)  # type: ignore[attr-defined]
        for name in ("systemctl", "curl"):
            (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{tmp_path}/told\n', encoding="utf-8")
            (programs / name).chmod(0o755)
        (root / "etc/systemd/system").mkdir(parents=True)
        script = re.sub(r"(?<![\w.])/(etc|opt|srv)/", rf"{root}/\1/", "\n".join(["umask 077", *self.blocks()]))
        # Compiling all libraries takes longer than installing them.
        environment = clean_environment() | {"PATH": f"{programs}:{os.environ['PATH']}", "PIP_NO_COMPILE": "1"}
        ended = subprocess.run(
            ["bash", "-euxc", script], check=False, cwd=checkout, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        assert re.search(r"^API keys +ok +1 *$", ended.stdout, re.MULTILINE), ended.stdout
        installed = [file for folder in ("opt", "srv") for file in (root / folder).rglob("*") if not file.is_symlink()]
        assert [file for file in installed if not file.stat().st_mode & stat.S_IROTH] == []

        settings = self.unit()
        command = settings["ExecStart"][0].replace("/opt/", f"{root}/opt/").removesuffix(" serve")
        secrets = dict(
            line.split("=") for line in (root / "etc/limelight/limelight.env").read_text(encoding="utf-8").splitlines()
        )
        bundle = Path(str(root) + settings["Environment"][0].removeprefix("LIMELIGHT_BUNDLE="))
        assert bundle.resolve().name == "bundle-2"
        variables = secrets | {"PYTHONPATH": ""}
        with running(bundle, tmp_path / "log", {}, command=[command], variables=variables, folder=root) as server:
            headers = {"Authorization": f"Bearer {secrets['LIMELIGHT_API_KEYS']}"}
            without, answer = (
                httpx.post(f"{server.url}/predict", content=clip, headers=each, timeout=PATIENCE_S, trust_env=False)
                for each in ({}, headers)
            )
            assert (without.status_code, answer.status_code) == (401, 200)
            server.process.terminate()
            assert server.process.wait(PATIENCE_S) == 0
        told = (tmp_path / "told").read_text(encoding="utf-8")
        assert "systemctl enable --now limelight@8000" in told
        assert "systemctl reload limelight@8000 limelight@8001" in told

    def test_the_unit_is_understood_by_systemd(self, tmp_path: Path) -> None:
        if not shutil.which("systemd-analyze"):
            pytest.skip("needs systemd-analyze")
        unit = tmp_path / "limelight@8000.service"
        unit.write_text(
            self.UNIT.read_text(encoding="utf-8").replace("/opt/limelight/current/bin/limelight", "/bin/true"),
            encoding="utf-8",
        )
        ended = subprocess.run(["systemd-analyze", "verify", unit], check=False, capture_output=True, text=True)

        assert (ended.returncode, ended.stderr) == (0, "")

    def test_the_unit_leaves_the_server_its_time_its_files_and_its_sandbox(self) -> None:
        unit, settings = self.unit(), Settings()
        (stop,), (files,) = unit["TimeoutStopSec"], unit["LimitNOFILE"]
        allowed = unit["SystemCallFilter"][0].split()

        assert int(stop) > settings.drain_delay_s + settings.request_timeout_s + SHUTDOWN_MARGIN_S
        assert int(files) >= 4 * MAX_CONNECTIONS
        assert unit["KillMode"] == ["mixed"]
        assert {"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"} <= {*allowed}
        assert "AF_UNIX" in unit["RestrictAddressFamilies"][0]
        # Each of these hides what the service reads, or forbids what ONNX Runtime's libraries do.
        assert {"ProcSubset", "MemoryDenyWriteExecute", "PrivateNetwork"}.isdisjoint(unit)

    def test_the_page_names_the_current_version(self) -> None:
        version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

        assert {*re.findall(r"\d+\.\d+\.\d+(?=[-/ ]|$)", "\n".join(self.blocks()))} == {version}

    def blocks(self) -> list[str]:
        """Return the page's commands, but those that need TensorFlow and minutes."""
        blocks = re.findall(r"^```sh\n(.*?)^```", self.PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        return [block for block in blocks if "requirements/export.txt" not in block]

    def unit(self) -> dict[str, list[str]]:
        """Return the unit's settings with their values."""
        found: dict[str, list[str]] = {}
        for name, value in re.findall(r"^(\w+)=(.*)$", self.UNIT.read_text(encoding="utf-8"), re.MULTILINE):
            found.setdefault(name, []).append(value)
        return found
