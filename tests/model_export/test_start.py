"""Training that begins with another head's weights."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_export import training
from model_export.data.examples import Example
from model_export.errors import HeadError, TrainingError
from model_export.fitting import FittedHead, Start, fit_head, predict_probabilities
from model_export.fitting.checkpoints import claim
from model_export.head import HeadFacts, TrainedHead, load_head, save_head
from model_export.network.classifier import build_head
from model_export.network.spec import HeadSpec
from model_export.recipe import Recipe, settings
from model_export.reporter import SILENT, Reporter
from model_export.revisions import CURRENT
from model_export.training import train_head
from service.model.bundle import file_sha256
from tests.model_export.cached_clips import CachedClips
from tests.model_export.reporting import Recording

CHANNELS = 8
PLAIN = HeadSpec(feature_scaling="none")
LABELS = ("diving", "squats", "waving")


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{"epochs": 1, "batch_size": 8, "holdout": 0, "feature_dropout": 0, **changes})


def clips(folder: Path, labels: Sequence[str], each: int, seed: int) -> list[Example]:
    """Make clips whose class is the channel that is active, in one cell that wanders; ``jumping`` is the last one."""
    random = np.random.default_rng(seed)
    made = []
    for label in labels:
        channel = CHANNELS - 1 if label == "jumping" else LABELS.index(label)
        for number in range(each):
            features = random.uniform(0, 0.5, (40, 7, 7, CHANNELS))
            for step, cell in enumerate(random.integers(0, 7, (40, 2))):
                features[step, cell[0], cell[1], channel] += 6.0
            file = folder / f"{seed}-{label}-{number}.npy"
            np.save(file, features.astype(np.float16))
            made.append(Example(file, labels.index(label), file.stem, file.stem))
    return made


def saved(folder: Path, spec: HeadSpec, encoder_sha256: str = "0", model: Any = None) -> TrainedHead:
    """Save a head of the three classes, untrained if no model is given."""
    one = spec.model_copy(update={"channels": CHANNELS})
    facts = HeadFacts(
        **one.model_dump(),
        name="first",
        version="7",
        labels=LABELS,
        encoder_sha256=encoder_sha256,
        revisions=CURRENT,
        training={},
    )
    return save_head(folder / "first", facts, model or build_head(3, one))


def accuracy(model: Any, examples: Sequence[Example]) -> float:
    named = predict_probabilities(model, examples).argmax(axis=1)
    return float((named == [example.label for example in examples]).mean())


def test_at_a_learning_rate_of_0_the_known_classes_are_answered_as_before(tmp_path: Path) -> None:
    """Without ``diving``, with ``jumping``, in another order: a softmax keeps the ratios of the classes that stay."""
    labels = ("jumping", "waving", "squats")
    examples = clips(tmp_path, labels, 1, 1)
    head = saved(tmp_path, PLAIN)
    model = fit_head(examples, 3, PLAIN, recipe(learning_rate=0), start=Start.of(head, PLAIN, "0", labels)).model
    before, after = (predict_probabilities(one, examples) for one in (head.build(), model))
    np.testing.assert_allclose(after[:, 1] / after[:, 2], before[:, 2] / before[:, 1], rtol=1e-4)
    assert np.abs(model.get_layer("probabilities").kernel[:, 0]).max() > 0, "the new class begins with random weights"


def test_each_member_begins_with_the_member_of_its_number(tmp_path: Path) -> None:
    two = PLAIN.model_copy(update={"members": 2})
    head = saved(tmp_path, two)
    start = Start.of(head, two, "0", LABELS)
    for member, layer in enumerate(("member_1", "member_2")):
        first = start.weights(member, build_head(3, PLAIN.model_copy(update={"channels": CHANNELS})))
        for found, expected in zip(first, head.build().get_layer(layer).get_weights(), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.ci
def test_few_clips_teach_a_new_class_sooner_than_without_the_other_head(tmp_path: Path) -> None:
    learnt = fit_head(clips(tmp_path, LABELS, 8, 0), 3, PLAIN, recipe(epochs=4, learning_rate=3e-3)).model
    labels = (*LABELS, "jumping")
    few, test = clips(tmp_path, labels, 2, 2), clips(tmp_path, labels, 4, 3)
    short = recipe(epochs=3, learning_rate=5e-4)
    start = Start.of(saved(tmp_path, PLAIN, model=learnt), PLAIN, "0", labels)
    begun = accuracy(fit_head(few, 4, PLAIN, short, start=start).model, test)
    scratch = accuracy(fit_head(few, 4, PLAIN, short).model, test)
    assert begun > scratch + 0.2


def test_a_head_of_another_network_or_encoder_is_refused_by_what_differs(tmp_path: Path) -> None:
    head = saved(tmp_path, PLAIN)
    for change, message in (
        ({"readout": "last", "motion": False}, "has readout mean, motion True, and this training has readout last, m"),
        ({"members": 2}, "has members 1, and this training has members 2; choose the same .* for --from"),
    ):
        with pytest.raises(TrainingError, match=message):
            Start.of(head, PLAIN.model_copy(update=change), "0", LABELS)
    with pytest.raises(TrainingError, match="trained on features of other VGG19 weights; name their file with --wei"):
        Start.of(head, PLAIN, "1", LABELS)


def test_checkpoints_that_began_with_another_head_are_refused(tmp_path: Path) -> None:
    examples = clips(tmp_path, LABELS, 2, 1)
    claim(tmp_path / "run", examples, {**settings(PLAIN, recipe()), "number of classes": 3})
    start = Start.of(saved(tmp_path, PLAIN), PLAIN, "0", LABELS)
    with pytest.raises(TrainingError, match="belong to another head to begin with; remove"):
        fit_head(examples, 3, PLAIN, recipe(), start=start, run=tmp_path / "run")


class TestTrain:
    """The command ``train``, without the fitting and without the int8 ranges, which need VGG19."""

    @pytest.fixture(autouse=True)
    def untrained(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fit(examples: Sequence[Example], classes: int, spec: HeadSpec, *_: object, **__: object) -> FittedHead:
            model = build_head(classes, spec.model_copy(update={"channels": CHANNELS}))
            return FittedHead(model, (1,), 0.5, 2, len(examples))

        monkeypatch.setattr(training, "fit_head", fit)
        monkeypatch.setattr(training, "_calibration", lambda *_: None)

    @staticmethod
    def train(cached: CachedClips, reporter: Reporter = SILENT, **options: Any) -> dict[str, Any]:
        """Train on two classes that the other head knows and one that it does not; return the facts."""
        selection = cached.add(*(f"{name}/v_{name}_g01_c01.mp4" for name in ("jumping", "squats", "waving")))
        paths = cached.features, cached.folder / "head"
        made = train_head(selection, *paths, HeadSpec(), recipe(), weights=cached.weights, reporter=reporter, **options)
        facts: dict[str, Any] = json.loads((made.path / "head.json").read_text(encoding="utf-8"))
        return facts

    def test_a_head_states_what_it_began_with_and_not_the_accuracy_on_clips_that_may_have_been_seen(
        self, cached: CachedClips
    ) -> None:
        assert self.train(cached)["training"]["holdout_accuracy"] == 0.5
        other, reporter = saved(cached.folder, HeadSpec(), file_sha256(cached.weights)), Recording()
        facts = self.train(cached, reporter, start=other.path)
        assert facts["labels"] == ["jumping", "squats", "waving"]
        assert facts["training"]["began_with"] == {"name": "first", "version": "7", "identity": other.identity()}
        assert "holdout_accuracy" not in facts["training"]
        assert any("too good if the head that it began with" in line for line in reporter.lines)

    def test_a_head_records_its_clips_and_those_of_the_head_that_it_began_with(self, cached: CachedClips) -> None:
        self.train(cached)
        clips = frozenset(hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in cached.videos.glob("*/*.mp4"))
        assert load_head(cached.folder / "head").trained_clips() == clips
        other = saved(cached.folder, HeadSpec(), file_sha256(cached.weights))
        self.train(cached, start=other.path)
        assert load_head(cached.folder / "head").trained_clips() is None, "those of the other head are not known"
        (other.path / "clips.txt").write_text("0123456789abcdef\n", encoding="utf-8")
        self.train(cached, start=other.path)
        assert load_head(cached.folder / "head").trained_clips() == clips | {"0123456789abcdef"}

    def test_the_accuracy_of_an_evaluation_and_the_folder_of_the_other_head_are_refused(
        self, cached: CachedClips
    ) -> None:
        with pytest.raises(TrainingError, match=r"--evaluation states .* random weights; leave it out with --from"):
            self.train(cached, start=cached.folder, evaluation=cached.folder)
        with pytest.raises(TrainingError, match="holds the head to begin with; choose another --output"):
            self.train(cached, start=cached.folder / "head")

    def test_a_head_of_other_revisions_is_refused(self, cached: CachedClips) -> None:
        other = saved(cached.folder, HeadSpec(), file_sha256(cached.weights))
        facts = json.loads((other.path / "head.json").read_text(encoding="utf-8"))
        facts["revisions"]["network"] = 0
        (other.path / "head.json").write_text(json.dumps(facts), encoding="utf-8")
        with pytest.raises(HeadError, match=r"was trained with network 0 \(now 1\); train the head again"):
            self.train(cached, start=other.path)
