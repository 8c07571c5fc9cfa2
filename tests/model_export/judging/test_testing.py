"""The command ``test``: a bundle or a head on the clips of a labelled folder."""

import csv
import json
import shutil
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_score,
    recall_score,
    top_k_accuracy_score,
)
from typer.testing import CliRunner

from model_export import machine
from model_export.cli import app
from model_export.data.gathering import Selection
from model_export.errors import DatasetError, EvaluationError, HeadError
from model_export.head import HeadFacts, TrainedHead, load_head, save_head, short_digest
from model_export.judging import testing
from model_export.judging.testing import judge_bundle, judge_head, served_precision
from model_export.network.classifier import build_head
from model_export.network.spec import HeadSpec
from model_export.rendering.figure import render_clip
from model_export.revisions import CURRENT
from service.cli.app import app as service
from service.model import spec
from service.model.bundle import Agreement, file_sha256, read_manifest
from service.model.spec import choose_precision
from service.video.decoder import decode_clip
from tests.model_export.cached_clips import CachedClips
from tests.model_export.reporting import Recording
from tests.tiny_bundle import AGREES, write_tiny_bundle

LABELS = ("climbing", "jumping_jacks", "running", "squats", "swimming", "waving", "yoga")
SMALL: dict[str, Any] = {"frames": 42, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of each of three classes, of which the last two of each are of one video."""
    folder = tmp_path_factory.mktemp("rendered") / "gym"
    for number, (action, clip) in enumerate(product(("jumping_jacks", "squats", "waving"), range(3))):
        path = folder / action / f"v_{action}_g{min(clip, 1):02}_c{clip:02}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(render_clip(action, seed=number, **SMALL).data)
    return folder


@pytest.fixture
def videos(rendered: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rendered, tmp_path / "gym"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("seven") / "bundle", LABELS, seed=359)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def probabilities_of(row: Mapping[str, str], labels: Iterable[str]) -> list[float]:
    return [float(row[f"probability of {label}"]) for label in labels]


def read_json(output: Path) -> Any:
    return json.loads((output / "test.json").read_text(encoding="utf-8"))


def test_the_service_gives_the_same_answers_for_the_same_clips(rendered: Path, bundle: Path, tmp_path: Path) -> None:
    judge_bundle(bundle, Selection(rendered), tmp_path)
    rows = read_csv(tmp_path / "predictions.csv")
    paths = [str(rendered / row["clip"]) for row in rows]
    answers = CliRunner().invoke(service, ["predict", *paths, "--bundle", str(bundle), "--json"]).stdout.splitlines()
    assert len(rows) == len(answers) == 9
    for row, answer in zip(rows, map(json.loads, answers), strict=True):
        assert row["label"] == Path(row["clip"]).parent.name
        assert row["predicted"] == answer["predictions"][0]["label"]
        assert [float(row[f"probability of {label}"]) for label in LABELS] == pytest.approx(
            answer["probabilities"], abs=1e-4
        )


def test_the_figures_are_scikit_learns(rendered: Path, bundle: Path, tmp_path: Path) -> None:
    found = judge_bundle(bundle, Selection(rendered), tmp_path)
    rows, report = read_csv(tmp_path / "predictions.csv"), read_json(tmp_path)
    truth, predicted = [row["label"] for row in rows], [row["predicted"] for row in rows]
    probabilities = [probabilities_of(row, LABELS) for row in rows]
    present = sorted({*truth})
    macro: dict[str, Any] = {"labels": present, "average": "macro", "zero_division": 0}
    expected = {
        "accuracy": accuracy_score(truth, predicted),
        "precision": precision_score(truth, predicted, **macro),
        "recall": recall_score(truth, predicted, **macro),
        "f1": f1_score(truth, predicted, **macro),
        "top5": top_k_accuracy_score(truth, probabilities, k=5, labels=LABELS),
    }
    assert 0 < expected["accuracy"] < 1, "a case that shows nothing"
    assert {name: one["value"] for name, one in report["figures"].items()} == pytest.approx(expected)
    assert all(0 <= one["low"] <= one["value"] <= one["high"] <= 1 for one in report["figures"].values())
    assert report["confusion"] == confusion_matrix(truth, predicted, labels=LABELS).tolist()
    recall = dict(zip(present, recall_score(truth, predicted, labels=present, average=None), strict=True))
    classes = read_csv(tmp_path / "classes.csv")
    assert {row["class"]: (row["clips"], row["source videos"], float(row["recall"])) for row in classes} == {
        label: ("3", "2", recall[label]) for label in present
    }
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert f"| accuracy | {100 * expected['accuracy']:.1f} |" in (tmp_path / "test.md").read_text(encoding="utf-8")
    assert found.results.names == tuple(row["clip"] for row in rows)


def test_classes_that_the_model_does_not_know_are_listed_and_left_out(
    videos: Path, bundle: Path, tmp_path: Path
) -> None:
    (videos / "squats").rename(videos / "crouching")
    reporter = Recording()
    found = judge_bundle(bundle, Selection(videos), tmp_path / "test", reporter=reporter)
    assert {clip.partition("/")[0] for clip in found.results.names} == {"jumping_jacks", "waving"}
    assert "left out, because the model does not know these classes: crouching" in reporter.lines
    absent = ["climbing", "running", "squats", "swimming", "yoga"]
    assert f"not tested, because these classes have no folder: {', '.join(absent)}" in reporter.lines
    report = read_json(tmp_path / "test")
    assert (report["unknown_classes"], report["classes_without_clips"]) == (["crouching"], absent)
    assert "`crouching`" in (tmp_path / "test" / "test.md").read_text(encoding="utf-8")
    with pytest.raises(
        DatasetError, match=r"gym has none of the model's classes, climbing, .*, only crouching; name its"
    ):
        judge_bundle(bundle, Selection(videos, ["crouching"]), tmp_path / "test")


def test_clips_that_cannot_be_decoded_or_have_another_place_are_listed(
    videos: Path, bundle: Path, tmp_path: Path
) -> None:
    damaged = min((videos / "waving").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:1000])
    (videos / "squats" / "moved.mp4").symlink_to(tmp_path / "nowhere")
    shutil.copy(damaged, videos / "loose.mp4")
    reporter = Recording()
    found = judge_bundle(bundle, Selection(videos), tmp_path / "test", reporter=reporter)
    assert len(found.results.names) == 8
    assert [row[0] for row in reporter.rows] == ["loose.mp4", "squats/moved.mp4", f"waving/{damaged.name}"]
    report, text = read_json(tmp_path / "test"), (tmp_path / "test" / "test.md").read_text(encoding="utf-8")
    assert list(report["undecodable"]) == [f"waving/{damaged.name}"]
    assert list(report["left_out"]) == ["loose.mp4", "squats/moved.mp4"]
    assert f"- Undecodable: `waving/{damaged.name}`\n- Left out: `loose.mp4`, `squats/moved.mp4`\n" in text


def test_an_interrupted_test_continues_where_it_stopped_whatever_the_clips_are_called_now(
    videos: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = judge_bundle(bundle, Selection(videos), tmp_path / "whole")
    decoded: list[Path] = []

    def decode(path: Path, limits: Any) -> Any:
        if len(decoded) == 4:
            raise KeyboardInterrupt
        decoded.append(path)
        return decode_clip(path, limits)

    monkeypatch.setattr(testing, "decode_clip", decode)
    with pytest.raises(KeyboardInterrupt):
        judge_bundle(bundle, Selection(videos), tmp_path / "test")
    first, *_ = (tmp_path / "test" / "answers").iterdir()
    first.write_bytes(first.read_bytes()[:100])
    decoded[0].rename(decoded[0].with_name("moved.mp4"))

    before, decoded[4:] = decoded[0], [Path()]  # no longer four
    resumed = judge_bundle(bundle, Selection(videos), tmp_path / "test")
    assert len(decoded) == 5 + 9 - 4 + 1, "all that was not complete, and nothing else"
    order = [resumed.results.names.index(name.replace(before.name, "moved.mp4")) for name in whole.results.names]
    np.testing.assert_array_equal(resumed.results.probabilities[order], whole.results.probabilities)


def test_answers_that_are_not_finite_are_refused(rendered: Path, tmp_path: Path) -> None:
    overflows = write_tiny_bundle(tmp_path / "bundle", LABELS, overflow_above=0.0)
    with pytest.raises(EvaluationError, match=r"tiny 1, fp16, .* with values that are not finite; test another --p"):
        judge_bundle(overflows, Selection(rendered), tmp_path / "test", precision="fp16")


@pytest.mark.parametrize("agreement", [AGREES, None, Agreement.model_validate({**AGREES.model_dump(), "low": 0.9})])
@pytest.mark.parametrize("precisions", [("fp32", "fp16", "int8"), ("fp32",)])
@pytest.mark.parametrize("vnni", [True, False])
def test_the_precision_is_the_one_that_the_service_chooses(
    tmp_path: Path, agreement: Agreement | None, precisions: Any, vnni: bool
) -> None:
    manifest = read_manifest(write_tiny_bundle(tmp_path, precisions=precisions, int8_agreement=agreement))
    assert served_precision(manifest, vnni=vnni) == choose_precision(manifest, on_cuda=False, vnni=vnni)[0]


def test_the_service_finds_the_same_instructions_on_this_processor() -> None:
    assert machine.has_vnni() == spec.has_vnni()


def test_the_precision_is_said(rendered: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing, "has_vnni", lambda: True)
    reporter = Recording()
    one = Selection(rendered, ["waving"], 1)
    judge_bundle(bundle, one, tmp_path, reporter=reporter)
    judge_bundle(bundle, one, tmp_path, precision="fp32", reporter=reporter)
    said = [line for line in reporter.lines if line.startswith("testing")]
    assert said == ["testing int8, which the service would use on this CPU", "testing fp32"]
    assert read_json(tmp_path)["model"].startswith("tiny 1, fp32, CPUExecutionProvider")


class TestHead:
    @pytest.fixture
    def head(self, cached: CachedClips) -> TrainedHead:
        """A head of four classes in another order than the folders', for features of six channels."""
        spec = HeadSpec(channels=6)
        facts = HeadFacts(
            **spec.model_dump(),
            name="gym",
            version="2",
            labels=("waving", "yoga", "squats", "diving"),
            encoder_sha256=file_sha256(cached.weights),
            revisions=CURRENT,
            training={},
        )
        return save_head(cached.folder / "head", facts, build_head(4, spec))

    @staticmethod
    def judge(head: TrainedHead, cached: CachedClips, selection: Selection) -> tuple[list[dict[str, str]], Recording]:
        reporter, output = Recording(), cached.folder / "test"
        paths: dict[str, Any] = {"features": cached.features, "weights": cached.weights}
        judge_head(head, selection, output, **paths, reporter=reporter)
        return read_csv(output / "predictions.csv"), reporter

    def test_it_answers_from_cached_features(self, head: TrainedHead, cached: CachedClips) -> None:
        rows, _ = self.judge(head, cached, cached.add("squats/a.mp4", "squats/b.mp4", "waving/c.mp4"))
        model = head.build()
        for row in rows:
            features = np.random.default_rng(list(row["clip"].encode())).random((40, 7, 7, 6)).astype(np.float16)
            expected = np.asarray(model(features[np.newaxis].astype(np.float32))["probabilities"])[0]
            assert [float(row[f"probability of {label}"]) for label in head.facts.labels] == pytest.approx(
                expected.tolist(), 1e-4
            )
            assert row["predicted"] == head.facts.labels[int(expected.argmax())]
        assert [row["label"] for row in rows] == ["squats", "squats", "waving"]

    def test_clips_that_it_was_trained_on_are_warned_of_by_their_content(
        self, head: TrainedHead, cached: CachedClips
    ) -> None:
        selection = cached.add("squats/a.mp4", "waving/b.mp4", "waving/c.mp4")
        rows, _ = self.judge(head, cached, selection)
        assert {row["trained on"] for row in rows} == {""}, "nothing is known"
        known = short_digest(file_sha256(cached.videos / "waving/b.mp4"))
        (head.path / "clips.txt").write_text(f"{known}\n{'0' * 16}\n", encoding="utf-8")
        (cached.videos / "waving/b.mp4").rename(cached.videos / "waving/moved.mp4")
        rows, reporter = self.judge(load_head(head.path), cached, selection)
        assert {row["clip"]: row["trained on"] for row in rows} == {
            "squats/a.mp4": "False", "waving/c.mp4": "False", "waving/moved.mp4": "True",
        }  # fmt: skip
        assert any(line.startswith("warning: 1 of 3 clips were trained on") for line in reporter.lines)
        assert "were trained on" in (cached.folder / "test" / "test.md").read_text(encoding="utf-8")

    def test_a_head_of_other_vgg19_weights_is_refused(self, head: TrainedHead, cached: CachedClips) -> None:
        selection = cached.add("squats/a.mp4", "waving/c.mp4")
        cached.weights.write_bytes(b"others")
        with pytest.raises(HeadError, match=r"trained on features of other VGG19 weights than .*; name their file"):
            self.judge(head, cached, selection)

    def test_the_head_of_another_bundle_is_refused(self, head: TrainedHead, bundle: Path, cached: CachedClips) -> None:
        with pytest.raises(HeadError, match="does not record which head it was made from"):
            judge_bundle(bundle, Selection(cached.videos), cached.folder, head=head)


def test_the_command_prints_figures_and_where_the_report_is(rendered: Path, bundle: Path, tmp_path: Path) -> None:
    arguments = ("test", "--videos", rendered, "--bundle", bundle, "--output", tmp_path, "--clips-per-class", 1)
    ended = CliRunner().invoke(app, [*map(str, arguments)])
    assert ended.exit_code == 0, ended.output
    assert "top-5 accuracy" in ended.stdout
    assert ended.stdout.rstrip().endswith(f"report: {tmp_path / 'test.md'}")
