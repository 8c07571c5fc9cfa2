"""The cache of features on disk."""

import json
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from model_export.data.encoders import FrameEncoder, keras_encoder
from model_export.data.features import FeatureCache
from model_export.errors import FeatureError
from model_export.rendering.figure import render_clip
from service.errors import ClipError
from service.files import locked
from service.video.decoder import decode_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    path.write_bytes(render_clip("waving", frames=45, seed=3).data)
    return path


@pytest.fixture(scope="module")
def encoder(narrow_encoder: Any) -> FrameEncoder:
    return keras_encoder(narrow_encoder)


def no_encoder() -> FrameEncoder:
    raise AssertionError("the features were there already")


@contextmanager
def full_disk() -> Iterator[None]:
    """Limit files to 1,000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_features_are_those_of_the_sampled_frames(clip: Path, encoder: FrameEncoder, tmp_path: Path) -> None:
    found = np.load(FeatureCache(tmp_path / "features", "sha", "float32").get(clip, lambda: encoder))
    np.testing.assert_array_equal(found, encoder(decode_clip(clip).frames))
    assert found.shape == (40, 7, 7, 8)


def test_features_are_computed_once_and_stored_as_float16(clip: Path, encoder: FrameEncoder, tmp_path: Path) -> None:
    first = FeatureCache(tmp_path, "sha").get(clip, lambda: encoder)
    again = FeatureCache(tmp_path, "sha").get(clip, no_encoder)
    assert first == again
    assert np.load(again).dtype == np.float16


def test_the_flipped_view_is_made_of_mirrored_frames_and_stored_beside_the_plain_one(
    clip: Path, encoder: FrameEncoder, tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path, "sha", "float32")
    plain, flipped = (cache.get(clip, lambda: encoder, view) for view in ("plain", "flipped"))
    assert cache.get(clip, no_encoder) == plain
    assert cache.get(clip, no_encoder, "flipped") == flipped
    assert flipped.name == f"{plain.stem}.flipped.npy"
    frames = decode_clip(clip).frames
    np.testing.assert_array_equal(np.load(flipped), encoder(np.flip(frames, axis=2)))
    # Not merely the features mirrored, nor the clip upside down or backwards.
    assert not np.array_equal(np.load(flipped), np.load(plain)[:, :, ::-1])


def test_a_moved_clip_is_found_and_a_changed_one_is_encoded_again(
    clip: Path, encoder: FrameEncoder, tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path / "features", "sha")
    cache.get(clip, lambda: encoder)
    moved = tmp_path / "other name.mp4"
    moved.write_bytes(clip.read_bytes())
    cache.get(moved, no_encoder)
    moved.write_bytes(render_clip("waving", frames=45, seed=4).data)
    with pytest.raises(AssertionError, match="there already"):
        cache.get(moved, no_encoder)


def test_feature_files_are_named_by_everything_that_made_them(
    clip: Path, encoder: FrameEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions and checkpoints are kept by these names, and must not be reused for other features."""

    def name(folder: str, *made_by: Any) -> str:
        return FeatureCache(tmp_path / folder, *made_by).get(clip, lambda: encoder).name

    names = [name("one", "sha"), name("of another VGG19", "sha 2"), name("float32", "sha", "float32")]
    assert name("same", "sha") == names[0]
    names += [name(engine, "sha", "float16", engine) for engine in ("TensorFlow in bfloat16", "MNN")]
    for revision in ("SAMPLING_REVISION", "RESIZE_REVISION", "ENCODER_REVISION"):
        with monkeypatch.context() as patched:
            patched.setattr(f"model_export.data.features.{revision}", 99)
            names.append(name(f"of another {revision}", "sha"))
    assert len(set(names)) == 8


def test_an_interruption_leaves_no_partial_features(
    clip: Path, encoder: FrameEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither while the clip is encoded nor in the middle of writing."""
    cache = FeatureCache(tmp_path, "sha")

    def interrupted(*_: object) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get(clip, interrupted)
    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.get(clip, lambda: encoder)
    assert [path.name for path in tmp_path.iterdir()] == ["cache.json"]


def test_a_full_disk_is_reported_and_leaves_no_partial_features(
    clip: Path, encoder: FrameEncoder, tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path, "sha")
    with (
        full_disk(),
        pytest.raises(
            FeatureError,
            match=rf"^features cannot be written to {tmp_path} \(File too large\); make room there, or choose",
        ),
    ):
        cache.get(clip, lambda: encoder)
    assert [path.name for path in tmp_path.iterdir()] == ["cache.json"]


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "features").write_bytes(b"")
    with pytest.raises(
        FeatureError, match=f"^features cannot be written to {tmp_path / 'features'} .*choose another folder$"
    ):
        FeatureCache(tmp_path / "features", "sha")


@pytest.mark.parametrize("left", [0.0, 0.01, 0.5, 0.999])
def test_truncated_features_are_computed_again(clip: Path, encoder: FrameEncoder, tmp_path: Path, left: float) -> None:
    """A copy made onto a full disk ends early."""
    cache = FeatureCache(tmp_path, "sha")
    path = cache.get(clip, lambda: encoder)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(left * len(whole))])
    assert cache.get(clip, lambda: encoder) == path
    assert path.read_bytes() == whole


def test_features_of_another_shape_or_type_are_computed_again(
    clip: Path, encoder: FrameEncoder, tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path, "sha")
    path = cache.get(clip, lambda: encoder)
    whole = path.read_bytes()
    for other in (np.load(path)[:39], np.load(path).astype(np.float32)):
        np.save(path, other)
        assert cache.get(clip, lambda: encoder).read_bytes() == whole


def test_features_that_cannot_be_read_are_named(clip: Path, encoder: FrameEncoder, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "sha")
    path = cache.get(clip, lambda: encoder)
    path.unlink()
    path.mkdir()
    with pytest.raises(FeatureError, match=rf"^{path} cannot be read \(Is a directory\); remove it"):
        cache.get(clip, no_encoder)


def test_features_that_are_no_numbers_are_not_stored(clip: Path, tmp_path: Path) -> None:
    def overflowing(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return np.full((len(frames), 7, 7, 8), 7e4, np.float32)

    cache = FeatureCache(tmp_path, "sha", "float16")
    with pytest.raises(
        FeatureError, match=rf"^the features of {clip} are not finite numbers in float16; remove the clip"
    ):
        cache.get(clip, lambda: overflowing)
    assert [path.name for path in tmp_path.iterdir()] == ["cache.json"]


def test_a_clip_that_cannot_be_decoded_is_a_clip_error(tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video")
    with pytest.raises(ClipError):
        FeatureCache(tmp_path / "features", "sha").get(bad, no_encoder)


def test_a_folder_keeps_the_type_that_it_was_created_with(tmp_path: Path) -> None:
    FeatureCache(tmp_path, "sha", "float32")
    assert FeatureCache(tmp_path, "sha", "float16").dtype == "float32"


def test_a_folder_keeps_the_engine_that_it_was_created_with(tmp_path: Path) -> None:
    FeatureCache(tmp_path, "sha", "float16", "MNN")
    assert FeatureCache(tmp_path, "sha", "float16", "TensorFlow in bfloat16").engine == "MNN"


def test_two_commands_that_begin_one_folder_agree_on_its_type(tmp_path: Path) -> None:
    folder, found = tmp_path / "features", []
    FeatureCache(tmp_path / "other", "sha", "float32")
    folder.mkdir()
    second = threading.Thread(target=lambda: found.append(FeatureCache(folder, "sha", "float16").dtype))
    with locked(folder):  # the first one has looked, and writes next
        second.start()
        second.join(0.2)
        (tmp_path / "other" / "cache.json").rename(folder / "cache.json")
    second.join()
    assert found == ["float32"]


def test_features_of_another_encoder_are_refused(tmp_path: Path) -> None:
    FeatureCache(tmp_path, "sha of one VGG19")
    with pytest.raises(FeatureError, match=r"another encoder_sha256; choose another folder, or remove it$"):
        FeatureCache(tmp_path, "sha of another")


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("sampling", "every-tenth"),
        ("sampling_revision", 1),
        ("resize", "crop"),
        ("frame_count", 16),
        ("colour", "BGR"),
        ("encoder_revision", 0),
    ],
)
def test_features_of_another_rule_are_refused(tmp_path: Path, fact: str, value: object) -> None:
    FeatureCache(tmp_path, "sha")
    facts = json.loads((tmp_path / "cache.json").read_text(encoding="utf-8"))
    (tmp_path / "cache.json").write_text(json.dumps({**facts, fact: value}), encoding="utf-8")
    with pytest.raises(FeatureError, match=f"^{tmp_path} holds features of another {fact}; choose another folder"):
        FeatureCache(tmp_path, "sha")


def test_features_from_before_the_sampling_rule_was_revised_are_refused(tmp_path: Path) -> None:
    """Their ``cache.json`` has no revision."""
    FeatureCache(tmp_path, "sha")
    facts = json.loads((tmp_path / "cache.json").read_text(encoding="utf-8"))
    del facts["sampling_revision"]
    (tmp_path / "cache.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(FeatureError, match="another sampling_revision; choose another folder"):
        FeatureCache(tmp_path, "sha")


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"7",
        b"{}",
        b'{"dtype": "bfloat16", "engine": "MNN"}',
        b'{"dtype": "float16"}',  # of a version that did not write the engine
        b'{"dtype": "float16", "engine": "Caffe"}',
    ],
    ids=lambda content: content.decode("latin"),
)
def test_a_damaged_description_is_refused(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "cache.json").write_bytes(damaged)
    with pytest.raises(
        FeatureError, match=f"^{tmp_path / 'cache.json'} does not say how the features beside it were made"
    ):
        FeatureCache(tmp_path, "sha")


def test_features_without_a_description_are_refused(clip: Path, encoder: FrameEncoder, tmp_path: Path) -> None:
    FeatureCache(tmp_path, "sha").get(clip, lambda: encoder)
    (tmp_path / "cache.json").unlink()
    with pytest.raises(FeatureError, match=r"does not say how the features beside it were made.*choose another folder"):
        FeatureCache(tmp_path, "another sha")
