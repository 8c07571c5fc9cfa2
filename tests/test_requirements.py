"""The locks that ``make lock`` writes have hashes, contain no registry address, and agree with each other."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

REPOSITORY = Path(__file__).parents[1]
LOCKS = sorted((REPOSITORY / "requirements").glob("*.txt"))
PIN = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)


def pins(lock: Path) -> dict[str, str]:
    return dict(PIN.findall(lock.read_text()))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_names_no_registry(lock: Path) -> None:
    text = lock.read_text()

    assert "://" not in text
    assert set(re.findall(r"^\s*(-[-\w]+)", text, re.MULTILINE)) == {"--hash"}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_pin_of_a_lock_has_a_hash(lock: Path) -> None:
    requirements = re.split(r"\n(?=\S)", lock.read_text())
    pinned = [requirement for requirement in requirements if not requirement.startswith("#")]

    assert len(pinned) > {"build": 5, "bench-decode": 2}.get(lock.stem, 30)
    assert all(PIN.match(requirement) and "--hash=sha256:" in requirement for requirement in pinned)


@pytest.mark.parametrize("variant", ("cpu", "gpu"))
def test_the_served_versions_are_the_tested_versions(variant: str) -> None:
    serve, dev = (pins(lock) for name in ("serve", "dev") for lock in LOCKS if lock.name == f"{name}-{variant}.txt")

    assert serve.items() <= dev.items()


def test_the_lowest_versions_are_the_lower_bounds_and_the_newest_are_within_the_bounds() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
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
