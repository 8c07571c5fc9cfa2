"""Comparing the precisions of a bundle with Keras."""

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import binom, binomtest

from model_export import verify
from model_export.data.datasets import LabelledClip
from model_export.data.encoders import keras_encoder
from model_export.data.features import FeatureCache
from model_export.data.gathering import Selection
from model_export.errors import FeatureError, HeadError, StorageError
from model_export.head import PRETRAINED, TrainedHead, load_head
from model_export.network.arrays import Frames, largest_difference, predictor
from model_export.quantize import QUANTIZER_REVISION
from model_export.revisions import CURRENT, Revisions
from model_export.verify import (
    ClipCheck,
    OnnxNetwork,
    Outcome,
    Reference,
    Subject,
    agreement,
    check_clips,
    compare,
    record_agreement,
    subjects_of,
    verify_bundle,
    wilson,
)
from service.errors import ClipError
from service.files import locked, replace_folder
from service.model.bundle import (
    LEAST_AGREEMENT,
    Bundle,
    Manifest,
    Outputs,
    Precision,
    file_sha256,
    load_bundle,
    read_manifest,
    write_manifest,
)
from tests.full_disk import no_file_longer_than
from tests.tiny_bundle import write_tiny_bundle

NUMBERS = count()
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


@pytest.fixture
def expected(narrow_head: Path, narrow_encoder: Any) -> Callable[[Frames], tuple[Frames, Outputs]]:
    encode, predict = keras_encoder(narrow_encoder), predictor(load_head(narrow_head).build())
    return lambda frames: (frames, predict(encode(frames)[np.newaxis]))


def check(outcome: Outcome, difference: float | None = 0.0, group: str | None = None) -> ClipCheck:
    return ClipCheck("clip", group or str(next(NUMBERS)), "int8", outcome, difference)


def subject(name: str, reference: Reference, content: str = "") -> Subject:
    return Subject(name, name, content or name, reference)


def never() -> tuple[Frames, Outputs]:
    raise AssertionError("a clip was compared twice")


def test_agreement_has_a_wilson_interval() -> None:
    found = agreement([check("agrees")] * 196 + [check("disagrees", 0.25)] * 4)
    assert (found.n, found.top1, found.max_abs_difference, found.not_finite) == (200, 0.98, 0.25, None)


@pytest.mark.parametrize(("agreeing", "n"), [(196, 200), (208, 208), (0, 7), (1, 1), (99, 189), (188, 189)])
def test_the_interval_of_independent_clips_is_scipys(agreeing: int, n: int) -> None:
    found = agreement([check("agrees") for _ in range(agreeing)] + [check("disagrees") for _ in range(n - agreeing)])
    expected = binomtest(agreeing, n).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.low <= found.top1 <= found.high


def test_clips_of_one_video_count_once_in_the_interval() -> None:
    outcomes: list[Outcome] = ["disagrees" if i % 20 == 0 else "agrees" for i in range(60)]
    once = agreement([check(outcome) for outcome in outcomes])
    fivefold = agreement([check(outcome, group=f"v{i}") for i, outcome in enumerate(outcomes) for _ in range(5)])
    assert (once.n, fivefold.n) == (60, 300)
    assert (fivefold.low, fivefold.high) == pytest.approx((once.low, once.high))


def test_copies_of_one_file_are_of_one_video(tmp_path: Path) -> None:
    files = {"a1": "one", "a2": "two", "b": "two", "c": "three", "d": "one"}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    clips = [LabelledClip(tmp_path / name, "Swing", name[0]) for name in files]
    found = subjects_of(clips, lambda clip: never())
    assert [one.name for one in found] == [clip.name for clip in clips]
    video = {one.group for one in found if one.name != clips[3].name}
    assert len(video) == 1
    assert found[3].group not in video


def test_the_interval_covers_the_truth_when_clips_of_a_video_behave_alike() -> None:
    random = np.random.default_rng(0)
    sizes = random.integers(1, 9, 60)
    covered = 0
    for _ in range(400):
        outcomes: list[Outcome] = ["agrees" if hit else "disagrees" for hit in random.random(60) < 0.9]
        pairs = zip(outcomes, sizes, strict=True)
        found = agreement([check(o, group=f"v{i}") for i, (o, size) in enumerate(pairs) for _ in range(size)])
        covered += found.low <= 0.9 <= found.high
    assert covered / 400 > 0.93


def test_without_a_disagreement_189_videos_are_needed_for_int8() -> None:
    def low(videos: int) -> float:
        return agreement([check("agrees") for _ in range(videos)]).low

    assert low(188) < 0.98 <= low(189)


@pytest.mark.parametrize(("disagreeing", "n"), [(0, 189), (1, 280), (2, 361), (3, 437)])
def test_a_precision_that_agrees_on_98_percent_only_passes_in_at_most_one_of_40_cases(disagreeing: int, n: int) -> None:
    def low(n: int) -> float:
        return wilson((n - disagreeing) / n, n)[0]

    assert low(n - 1) < LEAST_AGREEMENT <= low(n)
    assert 0.02 < binom.cdf(disagreeing, n, 1 - LEAST_AGREEMENT) <= 0.025


def test_values_that_are_not_finite_are_a_disagreement_with_a_word_of_its_own() -> None:
    found = agreement([check("agrees", 0.1)] * 8 + [check("not finite", None), check("disagrees", 0.5)])
    assert (found.top1, found.not_finite, found.max_abs_difference) == (0.8, 1, 0.5)
    nothing = agreement([check("not finite", None)])
    assert (nothing.top1, nothing.not_finite, nothing.max_abs_difference) == (0.0, 1, 0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["probabilities", "attention"])
def test_a_network_that_overflows_never_agrees(value: float, where: str) -> None:
    found = outputs()
    getattr(found, where)[..., :1] = value
    assert compare("clip", found, outputs()) == ("not finite", None)
    assert largest_difference(found, outputs()) == largest_difference(found, found) == np.inf
    with pytest.raises(HeadError, match="not finite in Keras for clip; train the head again"):
        compare("clip", outputs(), found)


@pytest.mark.parametrize(
    "other",
    [
        Outputs(np.full((1, 3), 1 / 3, np.float32), None),
        Outputs(np.full((1, 3), 1 / 3, np.float32), np.zeros((1, 1, 7, 7), np.float32)),
        Outputs(np.full((1, 1), 1, np.float32), np.zeros((1, 40, 7, 7), np.float32)),
    ],
    ids=("no maps", "one map", "one class"),
)
def test_outputs_of_other_shapes_are_refused(other: Outputs) -> None:
    for pair in ((other, outputs()), (outputs(), other)):
        with pytest.raises(HeadError, match=r"arrays of shapes .* export the bundle again"):
            compare("clip", *pair)


def outputs() -> Outputs:
    return Outputs(np.full((1, 3), 1 / 3, np.float32), np.full((1, 40, 7, 7), 1 / 49, np.float32))


def test_agreement_is_recorded_only_for_the_bytes_that_were_compared(tmp_path: Path) -> None:
    checked = load_bundle(write_tiny_bundle(tmp_path, precisions=["fp32", "int8"]))
    measured = agreement([check("agrees")])
    assert record_agreement({"int8": measured}, checked)
    assert [entry.agreement for entry in read_manifest(tmp_path).precisions.values()] == [None, measured]

    write_tiny_bundle(tmp_path, version="2", precisions=["fp32", "int8"], int8_agreement=None, seed=1)
    assert not record_agreement({"int8": measured}, checked)
    newer = load_bundle(tmp_path).manifest
    assert newer.version == "2"
    assert [entry.agreement for entry in newer.precisions.values()] == [None, None]


def test_a_full_disk_leaves_the_former_manifest(tmp_path: Path) -> None:
    checked = load_bundle(write_tiny_bundle(tmp_path, precisions=["fp32"]))
    with (
        no_file_longer_than(20),
        pytest.raises(StorageError, match=r"manifest.json was not written because the disk is full .*verify a copy on"),
    ):
        record_agreement({"fp32": agreement([check("agrees")])}, checked)
    assert read_manifest(tmp_path) == checked.manifest


def test_two_processes_that_record_agreement_at_once_lose_none(tmp_path: Path) -> None:
    """Each of them reads the manifest, changes one entry and writes all of them."""
    checked = load_bundle(write_tiny_bundle(tmp_path, int8_agreement=None))
    measured = agreement([check("agrees")])
    for _ in range(5):
        threads = [threading.Thread(target=record_agreement, args=({p: measured}, checked)) for p in PRECISIONS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(entry.agreement == measured for entry in read_manifest(tmp_path).precisions.values())
        write_tiny_bundle(tmp_path, int8_agreement=None)


def test_a_bundle_that_is_exported_while_agreement_is_recorded_keeps_its_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = load_bundle(write_tiny_bundle(tmp_path / "bundle", int8_agreement=None))
    newer = write_tiny_bundle(tmp_path / "work" / "new", version="2", int8_agreement=None, seed=1)

    def export() -> None:
        with locked(tmp_path / "bundle"):
            replace_folder(newer, tmp_path / "bundle")

    exporting = threading.Thread(target=export)

    def read_and_let_the_export_begin(path: Path) -> Manifest:
        found = read_manifest(path)
        exporting.start()
        exporting.join(0.2)  # it waits for the lock
        return found

    monkeypatch.setattr(verify, "read_manifest", read_and_let_the_export_begin)
    record_agreement({"int8": agreement([check("agrees")])}, checked)
    exporting.join()
    assert load_bundle(tmp_path / "bundle").manifest.version == "2"


def test_fp32_agrees_with_keras(
    narrow_bundle: Path,
    rendered_frames: list[npt.NDArray[np.uint8]],
    expected: Callable[[Frames], tuple[Frames, Outputs]],
    tmp_path: Path,
) -> None:
    clips = [subject(str(i), partial(expected, frames)) for i, frames in enumerate(rendered_frames)]
    found = list(check_clips(load_bundle(narrow_bundle), ["fp32", "int8"], clips, tmp_path / "log"))
    assert [(c.clip, c.precision) for c in found] == [("0", "fp32"), ("0", "int8"), ("1", "fp32"), ("1", "int8")]
    assert all(c.outcome == "agrees" and (c.max_abs_difference or 0) < 1e-5 for c in found if c.precision == "fp32")


@pytest.mark.parametrize(("lead", "outcome"), ((1e-3, "disagrees"), (1e-4, "agrees")))
def test_predicting_another_class_is_disagreement_unless_it_is_a_tie(lead: float, outcome: Outcome) -> None:
    found, expected = outputs(), outputs()
    found.probabilities[0, 0] += 0.1
    expected.probabilities[0, 1] += lead
    assert compare("clip", found, expected)[0] == outcome


class TestLog:
    """With the tiny bundle, whose answers serve as Keras'."""

    @pytest.fixture
    def bundle(self, tmp_path: Path) -> Bundle:
        return load_bundle(write_tiny_bundle(tmp_path / "bundle"))

    @pytest.fixture
    def reference(self, bundle: Bundle) -> Reference:
        frames = np.zeros((40, 224, 224, 3), np.uint8)
        found = OnnxNetwork(bundle.read_model("fp32"))(frames[np.newaxis])
        return lambda: (frames, found)

    def test_results_are_used_for_files_that_were_written_anew_from_the_same_head(
        self, bundle: Bundle, reference: Reference, tmp_path: Path
    ) -> None:
        list(check_clips(bundle, ["fp32"], [subject("a", reference)], tmp_path / "log"))
        anew = load_bundle(write_tiny_bundle(tmp_path / "anew", seed=1))
        assert anew.manifest.precisions["fp32"].sha256 != bundle.manifest.precisions["fp32"].sha256
        assert list(check_clips(anew, ["fp32"], [subject("a", never)], tmp_path / "log"))

    def test_an_interrupted_run_continues_where_it_stopped(
        self, bundle: Bundle, reference: Reference, tmp_path: Path
    ) -> None:
        log = tmp_path / "log"
        before = list(check_clips(bundle, ["fp32"], [subject("a", reference)], log))
        after = list(check_clips(bundle, ["fp32"], [subject("a", never), subject("b", reference)], log))
        assert after[:1] == before
        assert [(c.clip, c.outcome) for c in after] == [("a", "agrees"), ("b", "agrees")]

    def test_clips_that_cannot_be_decoded_are_skipped_by_name(
        self, bundle: Bundle, reference: Reference, tmp_path: Path
    ) -> None:
        def damaged() -> tuple[Frames, Outputs]:
            raise ClipError("it is cut off")

        skipped: dict[str, str] = {}
        clips = [subject("a", reference), subject("b", damaged), subject("c", reference)]
        found = list(check_clips(bundle, ["fp32", "int8"], clips, tmp_path / "log", skipped))
        assert [check.clip for check in found] == ["a", "a", "c", "c"]
        assert skipped == {"b": "it is cut off"}

    def test_a_clip_is_known_by_its_content(self, bundle: Bundle, reference: Reference, tmp_path: Path) -> None:
        log = tmp_path / "log"
        list(check_clips(bundle, ["fp32"], [subject("a", reference, "content")], log))
        (moved,) = check_clips(bundle, ["fp32"], [subject("moved", never, "content")], log)
        assert (moved.clip, moved.outcome) == ("moved", "agrees")
        with pytest.raises(AssertionError, match="compared twice"):
            list(check_clips(bundle, ["fp32"], [subject("a", never, "other content")], log))

    def test_results_of_another_export_frames_or_device_are_not_used(
        self, bundle: Bundle, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = tmp_path / "log"
        list(check_clips(bundle, ["fp32"], [subject("a", reference)], log))

        def compared_again(used: Bundle = bundle) -> bool:
            try:
                list(check_clips(used, ["fp32"], [subject("a", never)], log))
            except AssertionError:
                return True
            return False

        assert not compared_again()
        assert compared_again(replace(bundle, manifest=bundle.manifest.model_copy(update={"built_from": "another"})))
        for revision in Revisions.model_fields:
            with monkeypatch.context() as patch:
                patch.setattr(verify, "CURRENT", CURRENT.model_copy(update={revision: 99}))
                assert compared_again()
        monkeypatch.setattr(verify, "device_of", lambda precision: "another processor")
        assert compared_again()

    def test_lines_of_earlier_versions_and_lines_that_were_cut_off_are_passed_over(
        self, bundle: Bundle, reference: Reference, tmp_path: Path
    ) -> None:
        log = tmp_path / "log"
        earlier = {"sha256": bundle.manifest.precisions["fp32"].sha256, "clip": "a", "precision": "fp32"}
        lines = [json.dumps(earlier | {"agrees": True, "max_abs_difference": 0.0}), "[]", "3", "\udcff", '{"head": "5']
        log.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
        list(check_clips(bundle, ["fp32"], [subject("a", reference)], log))
        (again,) = check_clips(bundle, ["fp32"], [subject("a", never)], log)
        assert again.outcome == "agrees"

    def test_a_log_that_was_cut_off_anywhere_is_continued(
        self, bundle: Bundle, reference: Reference, tmp_path: Path
    ) -> None:
        whole, log = tmp_path / "whole", tmp_path / "log"
        list(check_clips(bundle, ["fp32"], [subject("a", reference), subject("b", reference)], whole))
        first, second = whole.read_bytes().splitlines()
        for length in range(len(second)):
            log.write_bytes(first + b"\n" + second[:length])
            assert len(verify._read_log(log)) == 1
            verify._append(log, second.decode())
            assert len(verify._read_log(log)) == 2, length

    def test_a_full_disk_leaves_whole_lines(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        verify._append(log, "first")
        with (
            no_file_longer_than(20),
            pytest.raises(StorageError, match=rf"^{log} was not written because the disk is full .*another --log$"),
        ):
            verify._append(log, "a second line that does not fit")
        assert log.read_text(encoding="utf-8") == "first\n"

    def test_a_run_waits_for_another_one_that_writes_to_the_log(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.touch()
        with locked(log):
            writing = threading.Thread(target=verify._append, args=(log, "line"))
            writing.start()
            writing.join(0.2)
            assert log.read_text(encoding="utf-8") == ""
        writing.join()
        assert log.read_text(encoding="utf-8") == "line\n"


class TestRecordedAgreement:
    @pytest.fixture
    def head(self, narrow_head: Path, tmp_path: Path) -> TrainedHead:
        shutil.copytree(narrow_head, tmp_path / "head")
        return load_head(tmp_path / "head")

    def test_it_is_valid_only_for_the_weights_and_the_quantizer_it_was_measured_with(self, head: TrainedHead) -> None:
        measured = agreement([check("agrees")] * 10)
        head.record_agreement({"int8": measured}, 1, head.sha256())
        assert head.agreement(1) == {"int8": measured}
        assert head.agreement(2) == {}
        head.calibration.write_text("other ranges", encoding="utf-8")
        assert head.agreement(1) == {}

    def test_a_full_disk_leaves_the_former_record(self, head: TrainedHead) -> None:
        measured = agreement([check("agrees")])
        head.record_agreement({"fp32": measured}, 1, head.sha256())
        with (
            no_file_longer_than(20),
            pytest.raises(StorageError, match=r"agreement.json was not written .*, or leave out --record$"),
        ):
            head.record_agreement({"int8": measured}, 1, head.sha256())
        assert head.agreement(1) == {"fp32": measured}

    def test_it_is_not_valid_for_another_network_with_the_same_weights(self, head: TrainedHead) -> None:
        head.record_agreement({"int8": agreement([check("agrees")])}, 1, head.sha256())
        facts = head.facts.model_dump(mode="json") | {"feature_scaling": "none"}
        (head.path / "head.json").write_text(json.dumps(facts), encoding="utf-8")
        assert load_head(head.path).agreement(1) == {}

    def test_a_record_of_another_quantizer_is_replaced_as_a_whole(self, head: TrainedHead) -> None:
        older, newer = agreement([check("agrees")] * 10), agreement([check("agrees")] * 20)
        head.record_agreement({"fp32": older, "int8": older}, 1, head.sha256())
        head.record_agreement({"int8": newer}, 1, head.sha256())
        assert head.agreement(1) == {"fp32": older, "int8": newer}
        head.record_agreement({"int8": newer}, 2, head.sha256())
        assert head.agreement(2) == {"int8": newer}

    def test_it_is_not_recorded_for_a_head_that_was_trained_again_meanwhile(self, head: TrainedHead) -> None:
        measured_on = head.sha256()
        head.calibration.write_text("other ranges", encoding="utf-8")
        with pytest.raises(HeadError, match="changed while it was verified; export it and verify again"):
            head.record_agreement({"int8": agreement([check("agrees")])}, 1, measured_on)
        assert not (head.path / "agreement.json").exists()

    def test_a_damaged_record_is_one_sentence(self, head: TrainedHead) -> None:
        (head.path / "agreement.json").write_text('{"head_sha256": ', encoding="utf-8")
        with pytest.raises(HeadError, match=r"agreement.json is not valid .*; remove it, and measure") as error:
            head.agreement(1)
        assert "\n" not in str(error.value)

    def test_that_of_the_shipped_head_counts(self) -> None:
        assert load_head(PRETRAINED).agreement(QUANTIZER_REVISION).keys() == {"fp32", "fp16", "int8"}


class TestBundlesHead:
    """``verify`` compares a bundle only with the head that it was made from."""

    def refusal(self, bundle: Path, head: Path) -> str:
        with pytest.raises(HeadError) as refused:
            verify_bundle(bundle, load_head(head), Selection(bundle), bundle / "log")
        assert "\n" not in str(refused.value)
        return str(refused.value)

    @pytest.fixture
    def bundle(self, narrow_bundle: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(narrow_bundle, tmp_path / "bundle"))

    def edit(self, bundle: Path, **training: object) -> None:
        manifest = read_manifest(bundle)
        write_manifest(bundle, manifest.model_copy(update={"training": manifest.training | training}))

    def test_another_head_with_the_same_labels_is_refused(
        self, bundle: Path, narrow_head: Path, tmp_path: Path
    ) -> None:
        other = Path(shutil.copytree(narrow_head, tmp_path / "other"))
        (other / "calibration.json").write_text("other ranges", encoding="utf-8")
        assert "was made from another head than that in" in self.refusal(bundle, other)

    def test_a_bundle_without_a_record_is_refused_with_the_remedy(self, bundle: Path, narrow_head: Path) -> None:
        self.edit(bundle, made_from=None)
        refusal = self.refusal(bundle, narrow_head)
        assert "does not record which head it was made from; export it again" in refusal

    def test_a_bundle_that_was_edited_is_refused(self, bundle: Path, narrow_head: Path) -> None:
        manifest = read_manifest(bundle)
        write_manifest(bundle, manifest.model_copy(update={"labels": ["another", "order", "of labels"]}))
        assert "was edited after it was exported" in self.refusal(bundle, narrow_head)

    def test_a_bundle_of_another_quantizer_is_refused(self, bundle: Path, narrow_head: Path) -> None:
        self.edit(bundle, made_from=read_manifest(bundle).training["made_from"] | {"quantizer": 0})
        assert "was quantized in another way" in self.refusal(bundle, narrow_head)


def test_float16_features_are_refused_with_a_remedy_that_works(narrow_head: Path, vgg19: Path, tmp_path: Path) -> None:
    features = tmp_path / "features"
    FeatureCache(features, file_sha256(vgg19))
    with pytest.raises(
        FeatureError, match=r"holds float16 features.*; name a new folder with --features, such as "
    ) as e:
        verify._keras_reference(load_head(narrow_head), vgg19, features)
    other = Path(str(e.value).partition("such as ")[2].partition(",")[0])
    verify._keras_reference(load_head(narrow_head), vgg19, other)
    assert FeatureCache(other, file_sha256(vgg19)).dtype == "float32"
