"""Saving a head: all of it or nothing."""

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_export.errors import HeadError, StorageError
from model_export.head import HeadFacts, load_head, save_head
from model_export.network.classifier import build_head
from model_export.revisions import CURRENT
from tests.full_disk import no_file_longer_than

FILES = {"head.json", "head.weights.h5", "calibration.json"}


def facts(version: str = "1") -> HeadFacts:
    return HeadFacts(
        name="small",
        version=version,
        channels=4,
        labels=("a", "b"),
        encoder_sha256="",
        revisions=CURRENT,
        training={},
    )


@pytest.fixture(scope="module")
def models() -> list[Any]:
    return [build_head(2, facts()) for _ in range(2)]


@pytest.fixture
def path(tmp_path: Path, models: list[Any]) -> Path:
    """A folder with a head."""
    save_head(tmp_path / "head", facts(), models[0], b"ranges")
    (tmp_path / "head" / "agreement.json").write_text("{}", encoding="utf-8")
    return tmp_path / "head"


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_keras_reads_the_weights_and_their_bytes_depend_on_nothing_else(path: Path, models: list[Any]) -> None:
    head = load_head(path)
    for found, expected in zip(head.build().get_weights(), models[0].get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
    before = head.sha256()
    assert save_head(path, facts(), head.build(), b"ranges").sha256() == before
    assert contents(path).keys() == FILES, "the agreement was that of the former head"


def test_a_full_disk_leaves_the_former_head(path: Path, models: list[Any]) -> None:
    before = contents(path)
    for size in (100, 100_000):  # not even the facts, and the facts alone
        with (
            no_file_longer_than(size),
            pytest.raises(StorageError, match=rf"^{path} was not written because .*; free 2 MiB there, or choose"),
        ):
            save_head(path, facts("2"), models[1], b"other ranges")
        assert contents(path) == before


@pytest.mark.parametrize("moment", range(7))
def test_facts_are_never_beside_the_weights_of_another_head(
    path: Path, models: list[Any], monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Whenever the process ends: before one of the three files is removed, or one of the three takes its place."""
    before, count = contents(path), []

    def stop_at_the_moment(act: Any) -> Any:
        def wrapped(self: Path, *arguments: Any, **options: Any) -> Any:
            count.append(self)
            if len(count) > moment:
                raise KeyboardInterrupt
            return act(self, *arguments, **options)

        return wrapped

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stop_at_the_moment(Path.replace))
        patched.setattr(Path, "unlink", stop_at_the_moment(Path.unlink))
        with pytest.raises(KeyboardInterrupt):
            save_head(path, facts("2"), models[1], b"other ranges")
    try:
        version = load_head(path).facts.version
    except HeadError:
        return
    found = {name: content for name, content in contents(path).items() if not name.startswith(".part-")}
    assert found == before if version == "1" else found.keys() == FILES


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_and_folders_have_the_permissions_that_the_umask_leaves(
    tmp_path: Path, models: list[Any], umask: int
) -> None:
    before = os.umask(umask)
    try:
        save_head(tmp_path / "runs" / "head", facts(), models[0], b"ranges")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "runs").rglob("*")}
    assert modes == {"head": 0o777 & ~umask} | dict.fromkeys(FILES, 0o666 & ~umask)
