"""Groups of clips with the same content are joined."""

from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_export.data.duplicates import EqualClips, join_equal
from model_export.data.examples import Example

RANDOM = np.random.default_rng(0)


def store(folder: Path, name: str, group: str, cuboids: npt.NDArray[np.float16], label: int = 0) -> Example:
    file = folder / f"{name}.npy"
    np.save(file, cuboids)
    return Example(file, label, group, f"squats/{name}")


def clip(beginning: npt.NDArray[np.float16] | None = None) -> npt.NDArray[np.float16]:
    """A clip of its own, after a beginning that others may share."""
    own = RANDOM.random((40, 7, 7, 4)).astype(np.float16)
    if beginning is not None:
        own[: len(beginning)] = beginning
    return own


def test_one_video_in_two_containers_is_one_group(tmp_path: Path) -> None:
    video = clip()
    examples = [
        store(tmp_path, "a.avi", "squats/a", video),
        store(tmp_path, "b.avi", "squats/b", clip()),
        store(tmp_path, "c.mp4", "squats/c", video, label=1),
    ]
    named, equal = join_equal(examples)
    assert [example.group for example in named] == ["squats/a", "squats/b", "squats/a"]
    assert [(e.name, e.label, e.features) for e in named] == [(e.name, e.label, e.features) for e in examples]
    assert equal == [EqualClips(("squats/a.avi", "squats/c.mp4"), ("squats/a", "squats/c"), "squats/a", classes=2)]


def test_equal_clips_of_one_group_are_not_worth_telling(tmp_path: Path) -> None:
    video = clip()
    examples = [store(tmp_path, name, "g", video) for name in ("a", "b")]
    assert join_equal(examples) == (examples, [])


def test_equal_clips_of_one_group_in_two_classes_are_told(tmp_path: Path) -> None:
    video = clip()
    examples = [store(tmp_path, name, "g", video, label) for label, name in enumerate("ab")]
    assert join_equal(examples) == (examples, [EqualClips(("squats/a", "squats/b"), ("g",), "g", classes=2)])


def test_a_black_beginning_and_a_single_other_value_keep_clips_apart(tmp_path: Path) -> None:
    black = np.zeros((39, 7, 7, 4), np.float16)
    one = clip()
    other = one.copy()
    other[20, 0, 0, 0] += 1
    pairs = [clip(black), clip(black), one, other]
    examples = [store(tmp_path, f"{i}", f"g{i}", cuboids) for i, cuboids in enumerate(pairs)]
    assert join_equal(examples) == (examples, [])


def test_few_bytes_are_read_of_clips_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [store(tmp_path, f"{i}", f"g{i}", clip()) for i in range(5)]
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read whole"))
    assert join_equal(examples) == (examples, [])


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=9), st.randoms())
def test_joining_is_transitive_and_does_not_depend_on_the_order(
    tmp_path_factory: pytest.TempPathFactory, clips: list[tuple[int, int]], random: Random
) -> None:
    """Clips of (group, content): an oracle that joins pair after pair, until nothing changes."""
    folder = tmp_path_factory.mktemp("features")
    examples = [
        store(folder, f"{i}", f"g{group}", np.full((40, 3, 3, 1), content, np.float16))
        for i, (group, content) in enumerate(clips)
    ]
    expected = [group for group, _ in clips]
    for _ in clips:
        for i, (group, content) in enumerate(clips):
            alike = [j for j, (g, c) in enumerate(clips) if g == group or c == content]
            expected[i] = min(expected[j] for j in alike)
    shuffled = list(range(len(clips)))
    random.shuffle(shuffled)
    for order in (range(len(clips)), shuffled):
        named, equal = join_equal([examples[i] for i in order])
        assert [example.group for example in named] == [f"g{expected[i]}" for i in order]
        assert {one.group for one in equal} == {
            f"g{name}"
            for name in expected
            if len({g for (g, _), e in zip(clips, expected, strict=True) if e == name}) > 1
        }
