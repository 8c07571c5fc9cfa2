"""Disk and memory that features and trainings take, told before."""

from pathlib import Path

import pytest

from model_export import space
from model_export.errors import StorageError
from model_export.space import (
    available_memory,
    check_features,
    feature_bytes,
    tell_ranges,
    tell_trainings,
    training_bytes,
)
from tests.model_export.reporting import Recording

MIB = 2**20


@pytest.fixture
def said() -> Recording:
    return Recording()


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 MiB of free disk, 2,000 MiB of memory."""
    monkeypatch.setattr(space, "free_disk", lambda path: 100 * MIB)
    monkeypatch.setattr(space, "available_memory", lambda: 2000 * MIB)


def test_the_features_of_a_view_take_2_megabytes_in_float16() -> None:
    assert feature_bytes("float16") == 2_007_040, "the size that the documentation states"
    assert feature_bytes("float32") == 4_014_080


@pytest.mark.usefixtures("small_machine")
def test_features_that_fit_are_told_and_others_are_refused(tmp_path: Path, said: Recording) -> None:
    check_features(tmp_path, 0, "float16", said)
    assert said.lines == [], "nothing is missing"
    check_features(tmp_path, 50, "float16", said)
    assert said.lines == ["features to compute: 50 views of clips, 96 MiB of disk (100 MiB free)"]
    with pytest.raises(
        StorageError, match=rf"^the features do not fit on the disk of {tmp_path}; free 92 MiB there, or"
    ):
        check_features(tmp_path, 50, "float32", said)


@pytest.mark.usefixtures("small_machine")
def test_trainings_are_told_without_what_is_there_already(tmp_path: Path, said: Recording) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "seed-0.npz").write_bytes(bytes(8 * MIB))
    tell_trainings(tmp_path, [MIB, MIB], 16, said)
    (line,) = said.lines
    assert line == (
        "trainings: 2, one after another; 16 MiB of disk for checkpoints (100 MiB free), about 1,134 MiB of memory "
        "(2,000 MiB available)"
    )


@pytest.mark.usefixtures("small_machine")
def test_trainings_that_take_more_than_there_is_are_warned_of(tmp_path: Path, said: Recording) -> None:
    tell_trainings(tmp_path / "new", [30 * MIB], 16, said)
    assert said.lines[1:] == [
        f"warning: the disk of {tmp_path / 'new'} will be full before the end; free 380 MiB there",
        "warning: memory may run out; end other programs, or lower --batch-size",
    ]


@pytest.mark.usefixtures("small_machine")
def test_the_memory_of_int8_ranges_is_told_and_warned_of(monkeypatch: pytest.MonkeyPatch, said: Recording) -> None:
    tell_ranges(said)
    assert said.lines == [
        "int8 ranges, after training: about 5,723 MiB of memory (2,000 MiB available)",
        "warning: memory may run out after training; end other programs by then",
    ]
    monkeypatch.setattr(space, "available_memory", lambda: 6000 * MIB)
    tell_ranges(said)
    assert said.lines[2:] == ["int8 ranges, after training: about 5,723 MiB of memory (6,000 MiB available)"]


@pytest.mark.parametrize(
    ("weights", "measured"),
    [(4_363_534, {8: 1087, 16: 1288, 32: 1771}), (29_365_005, {8: 2016, 16: 1909, 32: 1966})],
    ids=("attention", "base"),
)
def test_the_memory_of_a_training_is_about_what_was_measured(weights: int, measured: dict[int, int]) -> None:
    for batch_size, peak in measured.items():
        assert 0.93 * peak < training_bytes(weights, batch_size) / MIB < 1.31 * peak


def test_available_memory_is_the_least_of_the_systems_and_the_control_groups(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None

    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n", encoding="utf-8")

    write("proc/meminfo", "MemTotal:       16000 kB\nMemAvailable:   12000 kB")
    assert available_memory(tmp_path) == 12_000 * 1024
    write("sys/fs/cgroup/memory.max", "max")
    write("sys/fs/cgroup/memory.current", "5000000")
    assert available_memory(tmp_path) == 12_000 * 1024, "the group has no limit"
    write("sys/fs/cgroup/memory.max", "8000000")
    write("sys/fs/cgroup/memory.stat", "anon 1000000\ninactive_file 3000000")
    assert available_memory(tmp_path) == 8_000_000 - 5_000_000 + 3_000_000, "without files that were read once"
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000")
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", "1200000")
    assert available_memory(tmp_path) == 0


def test_free_disk_is_known_before_a_folder_exists(tmp_path: Path) -> None:
    assert space.free_disk(tmp_path / "a" / "b") == pytest.approx(space.free_disk(tmp_path), rel=0.1)
