import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_export.features import FeatureCache, FeatureError, encode
from service.video.decoder import decode_clip
from service.video.errors import ClipError
from service.video.rendering import render_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    path.write_bytes(render_clip("waving", frames=45, seed=3).data)
    return path


def no_encoder() -> Any:
    raise AssertionError("the features were there already")


def test_features_are_those_of_the_sampled_frames(clip: Path, narrow_encoder: Any, tmp_path: Path) -> None:
    found = FeatureCache(tmp_path / "features", "sha", "float32").get(clip, lambda: narrow_encoder)
    np.testing.assert_array_equal(found, encode(narrow_encoder, decode_clip(clip).frames))
    assert found.shape == (40, 7, 7, 8)


def test_features_are_computed_once_and_kept_as_halves(clip: Path, narrow_encoder: Any, tmp_path: Path) -> None:
    first = FeatureCache(tmp_path, "sha").get(clip, lambda: narrow_encoder)
    again = FeatureCache(tmp_path, "sha").get(clip, no_encoder)
    np.testing.assert_array_equal(first, again)
    assert again.dtype == np.float16


def test_a_moved_clip_is_known_and_a_changed_one_is_not(clip: Path, narrow_encoder: Any, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "features", "sha")
    cache.get(clip, lambda: narrow_encoder)
    moved = tmp_path / "other name.mp4"
    moved.write_bytes(clip.read_bytes())
    cache.get(moved, no_encoder)
    moved.write_bytes(render_clip("waving", frames=45, seed=4).data)
    with pytest.raises(AssertionError, match="there already"):
        cache.get(moved, no_encoder)


def test_interruption_leaves_no_half_written_features(clip: Path, narrow_encoder: Any, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "sha")

    def interrupted() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get(clip, interrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["cache.json"]


def test_clip_that_cannot_be_decoded_is_an_error_of_its_own(tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video")
    with pytest.raises(ClipError):
        FeatureCache(tmp_path / "features", "sha").get(bad, no_encoder)


def test_features_of_another_encoder_or_rule_are_refused(tmp_path: Path) -> None:
    FeatureCache(tmp_path, "sha of one VGG19")
    with pytest.raises(FeatureError, match=r"another encoder_sha256; choose another folder"):
        FeatureCache(tmp_path, "sha of another")
    facts = json.loads((tmp_path / "cache.json").read_text())
    (tmp_path / "cache.json").write_text(json.dumps({**facts, "sampling": "every-tenth"}))
    with pytest.raises(FeatureError, match="another sampling"):
        FeatureCache(tmp_path, "sha of one VGG19")
