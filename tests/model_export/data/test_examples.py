import ast
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from model_export.data.examples import Example
from model_export.errors import FeatureError


def example(features: Path, flipped: Path | None = None) -> Example:
    return Example(features, 0, "squats/1", "squats/a.mp4", flipped)


@pytest.mark.parametrize("dtype", (np.float16, np.float32))
@pytest.mark.parametrize("channels", (6, 512))
def test_features_are_read_as_they_were_saved(tmp_path: Path, dtype: npt.DTypeLike, channels: int) -> None:
    saved = np.random.default_rng(0).random((40, 7, 7, channels)).astype(dtype)
    np.save(tmp_path / "a.npy", saved)

    read = example(tmp_path / "a.npy").read()

    assert read.dtype == saved.dtype
    np.testing.assert_array_equal(read, saved)


def test_reading_features_does_not_use_the_python_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that parse at the same time make each other fail in Python 3.11.0 to 3.11.7."""
    np.save(tmp_path / "a.npy", np.zeros((40, 7, 7, 6), np.float16))

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("the Python parser was used")

    monkeypatch.setattr(ast, "parse", fail)
    monkeypatch.setattr(ast, "literal_eval", fail)

    assert example(tmp_path / "a.npy").read().shape == (40, 7, 7, 6)


@pytest.mark.parametrize("kept", (0, 60, 4000))
def test_a_truncated_file_of_features_is_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((40, 7, 7, 6), np.float16))
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(FeatureError, match=f"^{path} is damaged; remove it"):
        example(path).read()


@pytest.mark.parametrize(
    "other",
    (np.zeros((39, 7, 7, 6), np.float16), np.zeros((40, 7, 7), np.float16), np.zeros((40, 7, 7, 6)), np.float16(0)),
    ids=("frames", "axes", "type", "scalar"),
)
def test_a_file_of_another_array_is_named(tmp_path: Path, other: npt.NDArray[np.floating]) -> None:
    np.save(tmp_path / "a.npy", other)
    with pytest.raises(FeatureError, match=f"^{tmp_path / 'a.npy'} is damaged; remove it"):
        example(tmp_path / "a.npy").read()


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
def test_features_that_are_no_numbers_are_an_error(tmp_path: Path, value: float) -> None:
    features = np.zeros((40, 7, 7, 6), np.float16)
    features[39, 6, 6, 5] = value
    np.save(tmp_path / "a.npy", features)
    with pytest.raises(
        FeatureError, match=f"^{tmp_path / 'a.npy'} holds values that are not finite numbers; remove it"
    ):
        example(tmp_path / "a.npy").load()


def test_features_that_are_gone_or_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=f"^{tmp_path / 'a.npy'} is gone; run the command again"):
        example(tmp_path / "a.npy").read()
    (tmp_path / "a.npy").mkdir()
    with pytest.raises(FeatureError, match=rf"^{tmp_path / 'a.npy'} cannot be read \(Is a directory\); remove it"):
        example(tmp_path / "a.npy").read()


def test_features_of_the_mirrored_view_have_to_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"squats/a\.mp4 has no features of its mirrored view"):
        example(tmp_path / "a.npy").read(flipped=True)
