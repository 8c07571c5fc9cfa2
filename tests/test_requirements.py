"""The locks that ``make lock`` writes have hashes, contain no registry address, and agree with each other."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).parents[1]
LOCKS = sorted((REPOSITORY / "requirements").glob("*.txt"))
PIN = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)


def pins(lock: Path) -> dict[str, str]:
    return dict(PIN.findall(lock.read_text(encoding="utf-8")))


def imports(module: Path) -> Iterator[str]:
    """Yield the top-level packages that a module imports."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def test_every_library_that_is_imported_is_declared() -> None:
    """One that only a library of ours requires comes in any version, and may be gone tomorrow."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = sum(project["optional-dependencies"].values(), project["dependencies"])
    declared = {canonicalize_name(Requirement(text).name) for text in texts}
    ours = {"benchmarks", "limelight_start", "model_export", "service", "tests"}
    known = {*sys.stdlib_module_names, *ours, "bentoml", "litserve"}  # those two are in bench-peers.txt
    distributions = packages_distributions()

    for folder in ("service", "model_export", "tests", "benchmarks"):
        for module in (REPOSITORY / folder).rglob("*.py"):
            for package in {*imports(module)} - known:
                of = {canonicalize_name(name) for name in distributions.get(package, [package])}

                assert of & declared, f"{module} imports {package}"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_names_no_registry(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")

    assert "://" not in text
    assert set(re.findall(r"^\s*(-[-\w]+)", text, re.MULTILINE)) == {"--hash"}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_pin_of_a_lock_has_a_hash(lock: Path) -> None:
    requirements = re.split(r"\n(?=\S)", lock.read_text(encoding="utf-8"))
    pinned = [requirement for requirement in requirements if not requirement.startswith("#")]

    assert len(pinned) > {"build": 5, "bench-decode": 2}.get(lock.stem, 30)
    assert all(PIN.match(requirement) and "--hash=sha256:" in requirement for requirement in pinned)


@pytest.mark.parametrize("variant", ("cpu", "gpu"))
def test_the_served_versions_are_the_tested_versions(variant: str) -> None:
    serve, dev = (pins(lock) for name in ("serve", "dev") for lock in LOCKS if lock.name == f"{name}-{variant}.txt")

    assert serve.items() <= dev.items()


def test_the_lowest_versions_are_the_lower_bounds_and_the_newest_are_within_the_bounds() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    bounds = [Requirement(text) for text in project["dependencies"] + extras["cpu"] + extras["otel"]]
    lowest, newest = (pins(REPOSITORY / "requirements" / f"wheel-{name}.txt") for name in ("lowest", "newest"))

    for bound in bounds:
        (least,) = (clause.version for clause in bound.specifier if clause.operator == ">=")

        assert Version(lowest[bound.name]) == Version(least)
        assert newest[bound.name] in bound.specifier


@pytest.mark.parametrize("name", ("build", "export"))
def test_the_images_are_built_with_the_tested_versions(name: str) -> None:
    image, dev = (pins(lock) for name in (name, "dev-cpu") for lock in LOCKS if lock.stem == name)

    assert image.items() <= dev.items()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_never_holds_both_builds_of_onnx_runtime(lock: Path) -> None:
    wanted = {
        "build.txt": set(),
        "bench-decode.txt": set(),
        "dev-gpu.txt": {"onnxruntime-gpu"},
        "serve-gpu.txt": {"onnxruntime-gpu"},
    }

    assert {"onnxruntime", "onnxruntime-gpu"} & pins(lock).keys() == wanted.get(lock.name, {"onnxruntime"})


@pytest.mark.parametrize("lock", [lock for lock in LOCKS if lock.name.startswith("serve")], ids=lambda lock: lock.name)
def test_a_server_needs_no_training_framework(lock: Path) -> None:
    assert {"tensorflow", "keras", "tf2onnx", "onnx", "pytest"}.isdisjoint(pins(lock))
