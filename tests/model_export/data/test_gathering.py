"""From folders of clips to features."""

import errno
import json
import re
from pathlib import Path

import numpy as np
import pytest

from model_export.data import gathering
from model_export.data.encoders import FrameEncoder
from model_export.data.examples import fingerprint, groups_by_content
from model_export.data.features import FeatureCache
from model_export.data.folds import grouped_folds, hold_out_groups, random_folds
from model_export.data.gathering import FeatureSet, Selection, gather_features
from model_export.errors import DatasetError, FeatureError, StorageError
from model_export.network.spec import Engine, FeatureDtype
from model_export.rendering.figure import render_clip
from service.model.bundle import file_sha256
from tests.model_export.cached_clips import CachedClips
from tests.model_export.reporting import Recording


def gather(cached: CachedClips, **options: object) -> FeatureSet:
    return gather_features(Selection(cached.videos), cached.weights, cached.features, **options)  # type: ignore[arg-type]


def test_cached_features_become_examples(cached: CachedClips) -> None:
    cached.add("squats/v_squats_g01_c01.mp4", "waving/a.mp4")
    reporter = Recording()
    found = gather(cached, reporter=reporter)
    assert (found.labels, found.engine, found.dtype) == (("squats", "waving"), "TensorFlow", "float16")
    assert [(e.name, e.label, e.group) for e in found.examples] == [
        ("squats/v_squats_g01_c01.mp4", 0, "v_squats_g01"),
        ("waving/a.mp4", 1, "waving/a"),
    ]
    assert reporter.lines == ["2 clips of 2 classes, 0 left out as undecodable; features already cached"]


def test_missing_features_are_encoded_and_undecodable_clips_are_left_out(
    cached: CachedClips, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached.add("waving/a.mp4")
    (cached.videos / "waving" / "b.mp4").write_bytes(render_clip("waving", frames=45, width=96, height=96).data)
    (cached.videos / "waving" / "c.mp4").write_text("not a video", encoding="utf-8")
    encoder = FrameEncoder("TensorFlow", lambda frames: np.ones((len(frames), 7, 7, 6), np.float32))
    monkeypatch.setattr(gathering, "load_encoder", lambda weights, engine: encoder)
    reporter = Recording()
    found = gather(cached, flip=True, reporter=reporter)
    # a.mp4 is cached, but its mirrored view is not, and it cannot be decoded either.
    assert [(e.name, e.flipped is not None) for e in found.examples] == [("waving/b.mp4", True)]
    assert [clip.name for clip in found.undecodable] == ["waving/a.mp4", "waving/c.mp4"]
    assert [clip.name for clip in found.decodable] == ["waving/b.mp4"]
    assert [row[0] for row in reporter.rows] == [str(cached.videos / "waving" / name) for name in ("a.mp4", "c.mp4")]
    assert "features computed by TensorFlow" in reporter.lines[-1]


def test_features_that_do_not_fit_on_the_disk_are_refused_before_any_is_computed(
    cached: CachedClips, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached.add("waving/a.mp4")
    for name in ("b", "c"):
        (cached.videos / "waving" / f"{name}.mp4").write_text(name, encoding="utf-8")
    monkeypatch.setattr("model_export.space.free_disk", lambda path: 10 << 20)
    reporter = Recording()
    gather(cached, reporter=reporter)
    assert reporter.lines[0] == "features to compute: 2 views of clips, 4 MiB of disk (10 MiB free)"
    monkeypatch.setattr("model_export.space.free_disk", lambda path: 8 << 20)
    with pytest.raises(StorageError, match=rf"^the features do not fit on the disk of {cached.features}; free 2 MiB"):
        gather(cached, flip=True)  # five views of 1.9 MiB


def test_a_folder_keeps_its_engine_on_a_machine_where_another_one_is_faster(
    cached: CachedClips, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines round differently, so that features of two would not be comparable."""
    asked = []

    def load(weights: Path, engine: Engine) -> FrameEncoder:
        asked.append(engine)
        return FrameEncoder(engine, lambda frames: np.ones((len(frames), 7, 7, 6), np.float32))

    monkeypatch.setattr(gathering, "load_encoder", load)
    clip = cached.videos / "waving" / "b.mp4"
    reporter = Recording()
    for fastest, seed in (("MNN", 0), ("TensorFlow in bfloat16", 1)):
        monkeypatch.setattr(gathering, "fastest_engine", lambda dtype, fastest=fastest: fastest)
        clip.parent.mkdir(parents=True, exist_ok=True)
        clip.write_bytes(render_clip("waving", frames=45, width=96, height=96, seed=seed).data)
        found = gather(cached, reporter=reporter)
        assert found.engine == "MNN"
    assert asked == ["MNN", "MNN"]
    first, second = (line for line in reporter.lines if "runs on" in line)
    assert first == "VGG19 runs on MNN"
    assert second == (
        f"VGG19 runs on MNN, which the features in {cached.features} come from; TensorFlow in bfloat16 is faster here, "
        "and needs another folder"
    )


def test_a_file_of_another_number_of_channels_is_named(cached: CachedClips) -> None:
    cached.add("squats/a.mp4", "squats/b.mp4", "waving/a.mp4")
    odd = FeatureCache(cached.features, file_sha256(cached.weights)).path_of(b"squats/b.mp4")
    np.save(odd, np.zeros((40, 7, 7, 5), np.float16))
    with pytest.raises(FeatureError, match=rf"^{odd} holds features of another number of channels .*; remove it"):
        gather(cached)


def test_a_selection_is_limited_to_classes_and_a_number_of_clips(cached: CachedClips) -> None:
    cached.add("squats/a.mp4", "squats/b.mp4", "waving/a.mp4")
    assert [clip.name for clip in Selection(cached.videos, count=1).clips()] == ["squats/a.mp4", "waving/a.mp4"]
    assert Selection(cached.videos, ["waving"]).labels() == ["waving"]


def test_a_class_without_decodable_clips_is_named(cached: CachedClips) -> None:
    cached.add("squats/a.mp4")
    (cached.videos / "waving").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (cached.videos / "waving" / name).write_text(f"{name} is no video", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"waving: none of its clips can be decoded \(.*\); replace them or remove"):
        gather(cached)


def test_files_that_cannot_be_read_and_what_is_no_clip_are_left_out_and_listed(
    cached: CachedClips, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached.add("squats/a.mp4", "squats/b.mp4", "waving/a.mp4")
    (cached.videos / "waving" / "gone.mp4").symlink_to("elsewhere.mp4")
    read_bytes = Path.read_bytes

    def locked(path: Path) -> bytes:
        if path.name == "b.mp4":
            raise PermissionError(errno.EACCES, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", locked)
    reporter = Recording()
    found = gather(cached, reporter=reporter)
    assert sorted(example.name for example in found.examples) == ["squats/a.mp4", "waving/a.mp4"]
    assert found.left_out == {"waving/gone.mp4": "it is a link that leads nowhere"}
    assert reporter.rows == [
        (str(cached.videos / "waving" / "gone.mp4"), "it is a link that leads nowhere"),
        (str(cached.videos / "squats" / "b.mp4"), "it cannot be read (Permission denied)"),
    ]


def test_a_class_without_readable_clips_is_named_before_any_is_encoded(
    cached: CachedClips, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached.add("squats/a.mp4")
    (cached.videos / "waving" / "a.mp4").mkdir(parents=True)
    (cached.videos / "waving" / "a.mp4" / "b.mp4").write_bytes(b"")
    monkeypatch.setattr(FeatureCache, "get", lambda *_: pytest.fail("features were computed"))
    read_bytes = Path.read_bytes

    def locked(path: Path) -> bytes:
        if path.name == "b.mp4":
            raise PermissionError(errno.EACCES, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", locked)
    with pytest.raises(
        DatasetError, match=r"waving: none of its clips can be decoded \(it cannot be read \(Permission"
    ):
        gather(cached)


def test_a_clip_that_is_replaced_while_features_are_computed_is_named(
    cached: CachedClips, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached.add("squats/a.mp4", "waving/a.mp4")
    other = (cached.videos / "squats" / "a.mp4").read_bytes()
    with pytest.raises(DatasetError, match=r"waving/a.mp4 was replaced meanwhile; run the command again"):
        gather(cached, check=lambda data: (cached.videos / "waving" / "a.mp4").write_bytes(other))


@pytest.mark.parametrize(("stored", "asked"), [("float16", "float32"), ("float32", "float16")])
def test_features_of_another_type_need_another_folder(
    cached: CachedClips, stored: FeatureDtype, asked: FeatureDtype
) -> None:
    cached.add("squats/a.mp4", "waving/a.mp4")
    (cached.features / "cache.json").unlink()
    for file in cached.features.iterdir():
        file.unlink()
    FeatureCache(cached.features, file_sha256(cached.weights), stored)
    with pytest.raises(
        FeatureError, match=rf"^{cached.features} holds {stored} features; name another folder with --features for"
    ):
        gather(cached, dtype=asked)


class TestRenaming:
    """The same clips in the same classes and groups are the same data, whatever they are called."""

    @staticmethod
    def rename(cached: CachedClips) -> None:
        """Give all clips names that sort the other way round; the groups stay what they are."""
        for folder in cached.videos.iterdir():
            for path in folder.iterdir():
                group, number = re.fullmatch(r"v_\w+_g(\d+)_c(\d+)", path.stem).groups()  # type: ignore[union-attr]
                path.rename(path.with_name(f"v_{folder.name[::-1]}_g{90 - int(group)}_c{90 - int(number)}.mp4"))

    def test_nothing_depends_on_the_names_of_clips(self, cached: CachedClips) -> None:
        cached.add(*(f"squats/v_Squats_g{group:02}_c{cut:02}.mp4" for group in (1, 2, 3, 4, 5, 6) for cut in (1, 2)))
        cached.add(*(f"waving/v_Waving_g{group:02}_c{cut:02}.mp4" for group in (1, 2, 3) for cut in (1, 2, 3)))
        copy = cached.videos / "waving" / "v_Waving_g07_c01.mp4"
        copy.write_bytes((cached.videos / "waving" / "v_Waving_g01_c02.mp4").read_bytes())

        def facts() -> object:
            data = gather(cached)
            groups = groups_by_content(data.examples)
            kept, held = hold_out_groups(data.examples, 0.25)
            return (
                [(e.features, e.label, e.content, groups[e.group]) for e in data.examples],
                fingerprint(data.examples),
                data.selected,
                grouped_folds(data.examples, 3),
                random_folds(data.examples, 3),
                [[e.features for e in side] for side in (kept, held)],
                [clip.path.read_bytes() for clip in data.decodable],
            )

        before = facts()
        self.rename(cached)
        assert facts() == before

    def test_names_that_group_clips_otherwise_and_other_classes_are_other_data(self, cached: CachedClips) -> None:
        cached.add(*(f"{label}/v_x_g{group:02}_c01.mp4" for label in ("squats", "waving") for group in (1, 2)))
        before = gather(cached)
        path = cached.videos / "squats" / "v_x_g01_c01.mp4"
        path.rename(path.with_name("v_y_g01_c01.mp4"))
        regrouped = gather(cached)
        path.with_name("v_y_g01_c01.mp4").rename(cached.videos / "waving" / "v_y_g01_c01.mp4")
        moved = gather(cached)
        assert len({fingerprint(data.examples) for data in (before, regrouped, moved)}) == 3
        assert before.selected != regrouped.selected != moved.selected


@pytest.mark.parametrize("fact", ["encoder_sha256", "sampling_revision"])
def test_features_of_another_encoder_or_other_frames_are_refused(cached: CachedClips, fact: str) -> None:
    cached.add("squats/a.mp4", "waving/a.mp4")
    origin = cached.features / "cache.json"
    origin.write_text(json.dumps({**json.loads(origin.read_text(encoding="utf-8")), fact: "another"}), encoding="utf-8")
    with pytest.raises(
        FeatureError, match=f"{cached.features} holds features of another {fact}; choose another folder"
    ):
        gather(cached)


def test_one_class_is_refused_if_two_are_needed(cached: CachedClips, tmp_path: Path) -> None:
    cached.add("squats/a.mp4", "squats/b.mp4")
    with pytest.raises(
        DatasetError, match="squats is the only class, and training needs at least two; add clips of another"
    ):
        gather(cached, least_classes=2)


class TestEqualClips:
    def test_copies_are_one_group_and_are_told(self, cached: CachedClips) -> None:
        cached.add("squats/v_squats_g01_c01.mp4", "squats/v_squats_g01_c02.mp4", "waving/a.mp4", "waving/b.mp4")
        copy = cached.videos / "waving" / "renamed.mp4"
        copy.write_bytes((cached.videos / "squats" / "v_squats_g01_c02.mp4").read_bytes())
        reporter = Recording()
        found = gather(cached, reporter=reporter)
        assert [clip.group for clip in found.clips if clip.path == copy] == ["waving/renamed"], "by its name"
        assert {e.name: e.group for e in found.examples} == {
            "squats/v_squats_g01_c01.mp4": "v_squats_g01",
            "squats/v_squats_g01_c02.mp4": "v_squats_g01",
            "waving/a.mp4": "waving/a",
            "waving/b.mp4": "waving/b",
            "waving/renamed.mp4": "v_squats_g01",
        }
        assert reporter.lines[-2:] == [
            "2 groups were joined into 1, because clips of them are equal",
            (
                "equal clips are in several classes (1 times, first squats/v_squats_g01_c02.mp4 and "
                "waving/renamed.mp4); no network can tell them apart, so keep each clip in one class only"
            ),
        ]
        assert reporter.rows == [("squats/v_squats_g01_c02.mp4, waving/renamed.mp4", "v_squats_g01")]

    def test_long_lists_are_cut_off(self, cached: CachedClips) -> None:
        for number in range(22):
            cached.add(f"squats/{number}.mp4")
            (cached.videos / "squats" / f"copy of {number}.mp4").write_text(f"squats/{number}.mp4", encoding="utf-8")
        reporter = Recording()
        gather(cached, reporter=reporter)
        assert reporter.lines[-1] == "44 groups were joined into 22, because clips of them are equal"
        assert (len(reporter.rows), reporter.rows[-1]) == (21, ("and 2 more", ""))
