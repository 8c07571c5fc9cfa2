import ast
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from model_export.data.examples import Example


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
def test_a_truncated_file_of_features_is_an_error(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((40, 7, 7, 6), np.float16))
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(ValueError, match=r"a\.npy|reshape|buffer size"):
        example(path).read()


def test_features_of_the_mirrored_view_have_to_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"squats/a\.mp4 has no features of its mirrored view"):
        example(tmp_path / "a.npy").read(flipped=True)
