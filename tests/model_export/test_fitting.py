"""Fitting a head to cached features."""

import csv
import json
import math
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import tensorflow as tf

from model_export.data.examples import Example
from model_export.data.folds import hold_out_groups
from model_export.errors import FeatureError, StorageError, TrainingError
from model_export.fitting import FittedHead, LogLine, epoch_line, fit_head, predict_probabilities
from model_export.fitting.events import Events
from model_export.fitting.member import Trained
from model_export.network.classifier import build_head
from model_export.network.spec import HeadSpec
from model_export.recipe import Recipe
from model_export.reporter import Advance
from tests.full_disk import no_file_longer_than

CHANNELS = 8
PLAIN = HeadSpec(feature_scaling="none")


def quick(**changes: Any) -> Recipe:
    """A recipe that trains in seconds."""
    return Recipe(
        **{"epochs": 2, "batch_size": 8, "holdout": 0, "learning_rate": 3e-3, "feature_dropout": 0, **changes}
    )


QUICK = quick()

Examples = Callable[..., list[Example]]
Fitted = Callable[[Recipe], FittedHead]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """Clips whose class is the channel that is active, in one cell that wanders; each group has its own background."""

    @cache
    def make(groups: int, per_group: int = 2, classes: int = 3) -> list[Example]:
        folder = tmp_path_factory.mktemp("features")
        random = np.random.default_rng(0)
        made = []
        for label in range(classes):
            for group in range(groups):
                background = random.uniform(0, 0.3, CHANNELS)
                for clip in range(per_group):
                    features = background + random.uniform(0, 0.2, (40, 7, 7, CHANNELS))
                    for step, cell in enumerate(random.integers(0, 7, (40, 2))):
                        features[step, cell[0], cell[1], label] += 6.0
                    name = f"{label}/{group}-{clip}"
                    plain, flipped = (folder / f"{label}-{group}-{clip}{view}.npy" for view in ("", ".flipped"))
                    np.save(plain, features.astype(np.float16))
                    np.save(flipped, features[:, :, ::-1].astype(np.float16))
                    made.append(Example(plain, label, f"{label}/{group}", name, flipped))
        return made

    return make


@pytest.fixture(scope="module")
def fitted(examples: Examples) -> Fitted:
    """Heads fitted to two groups of each class, each recipe once for all tests."""
    return cache(lambda recipe: fit_head(examples(groups=2), 3, PLAIN, recipe))


def weights(result: FittedHead) -> list[Any]:
    return list(result.model.get_weights())


def assert_same(first: FittedHead, second: FittedHead) -> None:
    for one, other in zip(weights(first), weights(second), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def finished_run(examples: Examples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    fit_head(examples(groups=2, per_group=1), 3, PLAIN, QUICK, run=folder)
    return folder


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A folder with the checkpoints of a finished run, of ``QUICK`` on two groups of one clip each."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_a_head_learns_what_one_cell_shows_and_is_scored_on_held_out_groups(examples: Examples) -> None:
    clips = examples(groups=4)
    result = fit_head(clips, 3, PLAIN, quick(epochs=25, patience=25, holdout=0.25))
    assert result.holdout_accuracy is not None
    assert result.holdout_accuracy > 0.9
    assert result.holdout_clips == 6, "one group of four, two clips of each class"
    assert result.training_clips == 24, "the head that is kept has seen all"
    named = predict_probabilities(result.model, clips).argmax(axis=1)
    assert (named == [clip.label for clip in clips]).mean() > 0.9


def test_without_held_out_clips_all_epochs_are_trained_at_rates_that_fall_along_a_cosine(examples: Examples) -> None:
    lines: list[LogLine] = []
    result = fit_head(examples(2, 1), 3, PLAIN, quick(epochs=5), tell=lambda phase, line: lines.append(line))
    assert result.epochs == (5,)
    assert result.holdout_accuracy is None
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]
    assert "val_loss" not in lines[0]
    rates = [line["learning_rate"] for line in lines]
    assert rates == pytest.approx([1.5e-3 * (1 + math.cos(math.pi * epoch / 5)) for epoch in range(5)])


def test_the_same_settings_make_the_head_that_they_made_before(examples: Examples) -> None:
    """With every setting in use, so that a change of what any of them does is noticed."""
    lines: list[LogLine] = []
    everything = quick(holdout=0.25, flip=True, feature_dropout=0.5, doubly_stochastic=0.5, weight_decay=0.01)
    fit_head(examples(groups=2), 3, PLAIN, everything, tell=lambda phase, line: lines.append(line))
    losses = [line[key] for line in lines for key in ("loss", "val_loss") if key in line]
    assert losses == pytest.approx([1.105156, 1.114629, 1.148084, 1.020936, 0.999295, 0.862985], rel=5e-3), (
        "the same settings make another head, and kept checkpoints and predictions would be mixed with it: raise "
        "FITTING_REVISION in model_export/recipe.py, and store these losses here"
    )


def test_each_step_of_an_epoch_is_told(examples: Examples) -> None:
    heard: list[Advance] = []
    fit_head(examples(groups=4), 3, PLAIN, quick(holdout=0.25, epochs=1), progress=heard.append)
    assert heard == [
        *(Advance("seed-0-holdout, epoch 1", done, 3) for done in range(4)),  # 18 clips, 8 a step
        *(Advance("seed-0, epoch 1", done, 3) for done in range(4)),
    ]


def test_training_stops_when_the_held_out_loss_no_longer_falls(examples: Examples) -> None:
    phases: list[str] = []
    rates: list[float] = []

    def tell(phase: str, line: LogLine) -> None:
        phases.append(phase)
        rates.append(line["learning_rate"])

    recipe = quick(epochs=30, patience=1, holdout=0.25, learning_rate=1.0, schedule="constant")
    result = fit_head(examples(groups=4), 3, PLAIN, recipe, tell=tell)
    assert phases.count("seed-0-holdout") < 30
    assert phases.count("seed-0") == result.epochs[0]
    assert set(rates) == {1.0}, "a constant rate does not fall"


def test_the_seed_determines_the_head(examples: Examples, fitted: Fitted) -> None:
    assert_same(fitted(QUICK), fit_head(examples(groups=2), 3, PLAIN, QUICK))
    assert any(
        (one != two).any() for one, two in zip(weights(fitted(QUICK)), weights(fitted(quick(seed=1))), strict=True)
    )


@pytest.mark.parametrize(
    "change",
    [
        {"flip": True},
        {"label_smoothing": 0.3},
        {"weight_decay": 0.5},
        {"feature_dropout": 0.5},
        {"doubly_stochastic": 1.0},
    ],
)
@pytest.mark.ci
def test_each_setting_changes_the_head(fitted: Fitted, change: dict[str, Any]) -> None:
    plain, changed = fitted(QUICK), fitted(quick(**change))
    assert any((one != two).any() for one, two in zip(weights(plain), weights(changed), strict=True))


def sharp_head(*arguments: Any, **options: Any) -> Any:
    """An untrained head without dropout whose answers differ between clips."""
    head = build_head(*arguments, **options, dropout=0)
    kernel = head.get_layer("probabilities").kernel
    kernel.assign(20 * kernel)
    return head


def test_balanced_weights_let_classes_count_alike_in_the_loss(
    examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with the formula, of a network without dropout in one step that changes nothing."""
    monkeypatch.setattr("model_export.fitting.member.build_head", sharp_head)
    clips = [clip for clip in examples(groups=4, per_group=1) if clip.label == 0 or clip.group.endswith("/0")]
    labels = [clip.label for clip in clips]
    assert labels == [0, 0, 0, 0, 1, 2]
    recipe = quick(epochs=1, batch_size=6, label_smoothing=0, learning_rate=0, class_weights="balanced")
    lines: list[LogLine] = []
    found = fit_head(clips, 3, PLAIN, recipe, tell=lambda phase, line: lines.append(line))
    losses = -np.log(predict_probabilities(found.model, clips)[np.arange(6), labels])
    assert lines[0]["loss"] == pytest.approx((losses * [0.5, 0.5, 0.5, 0.5, 2, 2]).mean(), rel=1e-5)
    assert lines[0]["loss"] != pytest.approx(losses.mean(), rel=1e-2)


def test_the_log_has_the_plain_cross_entropy_of_training_and_held_out_clips(
    examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is minimised has smoothed labels and weighs classes, and cannot be compared with the held-out loss."""
    monkeypatch.setattr("model_export.fitting.member.build_head", sharp_head)
    clips = examples(groups=2, per_group=1)
    one_step = quick(epochs=1, batch_size=3, label_smoothing=0.3, learning_rate=0, holdout=0.5)
    lines: list[LogLine] = []
    found = fit_head(clips, 3, PLAIN, one_step, tell=lambda phase, line: lines.append(line))

    def losses(examples: list[Example]) -> Any:
        """Cross-entropy of each clip with each class, ``(clips, classes)``."""
        return -np.log(predict_probabilities(found.model, examples))

    def plain(examples: list[Example]) -> float:
        return float(losses(examples)[range(3), [clip.label for clip in examples]].mean())

    keep, hold = hold_out_groups(clips, 0.5)
    assert lines[0]["cross_entropy"] == pytest.approx(plain(keep), rel=1e-5)
    assert lines[0]["val_loss"] == pytest.approx(plain(hold), rel=1e-5)
    assert lines[0]["loss"] == pytest.approx(0.7 * plain(keep) + 0.3 * losses(keep).mean(), rel=1e-5)


@pytest.mark.ci
def test_tensorboard_gets_the_log_once_whatever_happens_and_the_head_does_not_change(
    examples: Examples, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are read as records of TensorFlow's own message."""
    board = tmp_path / "board"
    recipe = QUICK.model_copy(update={"tensorboard": board})

    def stop(phase: str, line: LogLine) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_head(examples(groups=2), 3, PLAIN, recipe, run=tmp_path / "run", tell=stop)
    with monkeypatch.context() as patch:
        patch.setattr(Events, "write", Mock(side_effect=TrainingError))  # such as on a full disk
        with pytest.raises(TrainingError):
            fit_head(examples(groups=2), 3, PLAIN, recipe, run=tmp_path / "run")
    for _ in range(2):
        found = fit_head(examples(groups=2), 3, PLAIN, recipe, run=tmp_path / "run")
    assert_same(found, fitted(QUICK))
    with (tmp_path / "run" / "seed-0.csv").open(encoding="utf-8") as file:
        log = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert scalars(board / "seed-0") == pytest.approx(
        {(name, int(line["epoch"])): line[name] for line in log for name in line if name != "epoch"}, rel=1e-6
    )
    shutil.rmtree(board)
    fit_head(examples(groups=2), 3, PLAIN, recipe, run=tmp_path / "run")
    assert len(scalars(board / "seed-0")) == 2 * 4, "epochs trained before are written if nothing is there"


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    found: dict[tuple[str, int], float] = {}
    for record in tf.data.TFRecordDataset([str(file) for file in folder.iterdir()]):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name == "scalars"
            assert (value.tag, event.step) not in found, "written twice"
            found[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    return found


def test_a_folder_for_tensorboard_that_cannot_be_made_is_named(examples: Examples, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        fit_head(examples(groups=2), 3, PLAIN, QUICK.model_copy(update={"tensorboard": tmp_path / "file"}))


def test_a_full_disk_of_tensorboards_folder_is_one_sentence(tmp_path: Path) -> None:
    events = Events(tmp_path, [])
    with (
        no_file_longer_than(10),
        pytest.raises(
            TrainingError,
            match=rf"^{tmp_path} cannot be written \({tmp_path}/events\S+; File too large\); choose another folder for",
        ),
    ):
        events.write({"epoch": 1, "loss": 0.5})


def test_members_are_averaged_in_one_head(examples: Examples, fitted: Fitted) -> None:
    clips = examples(groups=2)
    both = fit_head(clips, 3, HeadSpec(feature_scaling="none", members=2), QUICK)
    alone = [fitted(quick(seed=seed)).model for seed in (0, 1)]
    np.testing.assert_allclose(
        predict_probabilities(both.model, clips),
        np.mean([predict_probabilities(head, clips) for head in alone], axis=0),
        atol=1e-6,
    )
    assert both.epochs == (2, 2)


def test_members_are_trained_as_asked_and_scored_by_their_mean_answer(examples: Examples) -> None:
    """Each is right on one half of the held-out clips, and surer where it is right: their mean is right on all."""
    clips = examples(groups=4)
    _, hold = hold_out_groups(clips, 0.25)
    truth = np.eye(3)[[clip.label for clip in hold]]
    half = (np.arange(len(hold)) % 2 == 0)[:, None]
    right, wrong = 0.8 * truth + 0.2 / 3, 0.4 * np.roll(truth, 1, axis=1) + 0.2
    worst = np.roll(truth, 1, axis=1)
    trained: list[tuple[str, int]] = []
    untrained = build_head(3, HeadSpec(feature_scaling="none", channels=CHANNELS)).get_weights()

    def answer(work: Any, tell: Any) -> Any:
        """Return two epochs, of which the first member's second and the second member's first is the best."""
        phase = work.args[1]
        trained.append((phase, work.keywords["epochs"]))
        first = phase.startswith("seed-0")
        best = np.where(half == first, right, wrong)
        losses = (2.0, 1.0) if first else (1.0, 2.0)
        return Trained(untrained, [{"val_loss": loss} for loss in losses], [worst, best] if first else [best, worst])

    spec = HeadSpec(feature_scaling="none", members=2)
    result = fit_head(clips, 3, spec, quick(epochs=2, holdout=0.25), how=answer)
    assert trained == [("seed-0-holdout", 2), ("seed-0", 2), ("seed-1-holdout", 2), ("seed-1", 1)]
    assert result.holdout_accuracy == 1.0


@pytest.mark.ci
def test_an_interrupted_run_leads_to_the_same_head_and_logs_every_epoch(examples: Examples, tmp_path: Path) -> None:
    clips, recipe = examples(groups=4, per_group=1), quick(epochs=4, holdout=0.25, patience=4, flip=True)
    whole = fit_head(clips, 3, PLAIN, recipe)

    for plug_pulled_after in (("seed-0-holdout", 2), ("seed-0", 1)):

        def pull(phase: str, line: LogLine, after: tuple[str, int] = plug_pulled_after) -> None:
            if (phase, line["epoch"]) == after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit_head(clips, 3, PLAIN, recipe, run=tmp_path / "run", tell=pull)
    done: list[tuple[str, float]] = []
    resumed = fit_head(
        clips, 3, PLAIN, recipe, run=tmp_path / "run", tell=lambda phase, line: done.append((phase, line["epoch"]))
    )
    assert_same(whole, resumed)
    assert ("seed-0", 1) not in done, "what was trained is not trained again"
    assert resumed.holdout_accuracy == whole.holdout_accuracy
    header, *epochs = (tmp_path / "run" / "seed-0-holdout.csv").read_text(encoding="utf-8").splitlines()
    assert header == "epoch,learning_rate,loss,cross_entropy,accuracy,val_loss,val_accuracy"
    assert len(epochs) == 4


@pytest.mark.parametrize(
    ("spec", "recipe", "named"),
    [(HeadSpec(feature_scaling="none", variant="base"), QUICK, "variant"), (PLAIN, quick(seed=5), "seed")],
)
def test_checkpoints_of_another_network_or_recipe_are_refused(
    examples: Examples, run: Path, spec: HeadSpec, recipe: Recipe, named: str
) -> None:
    clips = examples(groups=2, per_group=1)
    with pytest.raises(TrainingError, match=f"belong to another {named}; remove"):
        fit_head(clips, 3, spec, recipe, run=run)


def test_checkpoints_of_a_head_of_other_classes_are_refused(examples: Examples, run: Path) -> None:
    with pytest.raises(TrainingError, match="belong to another number of classes; remove"):
        fit_head(examples(groups=2, per_group=1), 4, PLAIN, QUICK, run=run)


def test_checkpoints_are_found_after_clips_were_renamed(examples: Examples, run: Path) -> None:
    clips = examples(groups=2, per_group=1)
    renamed = [replace(clip, name=f"new {clip.name}", group=f"new {clip.group}") for clip in clips]
    done: list[str] = []
    fit_head(renamed, 3, PLAIN, QUICK, run=run, tell=lambda phase, line: done.append(phase))
    assert not done
    one_video = [replace(clip, group="one") for clip in clips]
    with pytest.raises(TrainingError, match="belong to another set of features"):
        fit_head(one_video, 3, PLAIN, QUICK, run=run)


def test_checkpoints_of_other_clips_are_refused(examples: Examples, run: Path) -> None:
    clips = examples(groups=2, per_group=1)
    with pytest.raises(TrainingError, match="belong to another set of features"):
        fit_head(clips[1:], 3, PLAIN, QUICK, run=run)
    (run / "recipe.json").write_text("{", encoding="utf-8")
    with pytest.raises(TrainingError, match="is damaged; remove"):
        fit_head(clips, 3, PLAIN, QUICK, run=run)


def test_a_class_with_one_group_cannot_be_held_out(examples: Examples, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"one source video.*--holdout 0"):
        fit_head(examples(groups=1), 3, PLAIN, quick(holdout=0.25), run=tmp_path / "run")
    fit_head(examples(groups=1), 3, PLAIN, QUICK, run=tmp_path / "run")  # the remedy is open


def test_a_loss_that_is_not_finite_ends_the_run(examples: Examples) -> None:
    with pytest.raises(TrainingError, match="the loss is nan after epoch 1"):
        fit_head(examples(groups=2), 3, PLAIN, quick(learning_rate=1e38, schedule="constant"))


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (3e38, "the weights are not finite after epoch 1; lower --learning-rate"),
        (1e38, "the trained head computes values that are not finite; lower --learning-rate"),
    ],
)
def test_a_head_that_its_last_step_ruined_is_an_error(
    examples: Examples, tmp_path: Path, rate: float, message: str
) -> None:
    """The loss is that of the weights before the step, and finite. Weights can be finite and still too large."""
    with pytest.raises(TrainingError, match=f"^{message}$"):
        fit_head(
            examples(2, 1), 3, PLAIN, quick(epochs=1, learning_rate=rate, schedule="constant"), run=tmp_path / "run"
        )


def ruin_the_weights(state: Path) -> None:
    with np.load(state) as kept:
        arrays = dict(kept)
    arrays["arr_0"][:] = np.nan
    np.savez(state, **arrays)


def leave_the_optimizer_out(state: Path) -> None:
    with np.load(state) as kept:
        arrays = dict(kept)
    np.savez(state, arr_0=arrays["arr_0"], log=arrays["log"], answers=arrays["answers"])


def cut(state: Path) -> None:
    state.write_bytes(state.read_bytes()[:5000])


def empty(state: Path) -> None:
    state.write_bytes(b"")


def flip_a_bit(state: Path) -> None:
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (ruin_the_weights, "holds weights that are not finite; remove it, and lower --learning-rate"),
        (leave_the_optimizer_out, "is damaged; remove it, and run again"),
        (cut, "is damaged; remove it, and run again"),
        (empty, "is damaged; remove it, and run again"),
        (flip_a_bit, "is damaged; remove it, and run again"),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(
    examples: Examples, run: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(run / "seed-0.npz")
    with pytest.raises(TrainingError, match=rf"^{run}/seed-0\.npz {message}$"):
        fit_head(examples(groups=2, per_group=1), 3, PLAIN, QUICK, run=run)


def test_checkpoints_of_earlier_versions_are_refused(examples: Examples, run: Path) -> None:
    facts = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    del facts["format of checkpoints"]
    (run / "recipe.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(TrainingError, match="belong to another format of checkpoints; remove the folder"):
        fit_head(examples(groups=2, per_group=1), 3, PLAIN, QUICK, run=run)


@pytest.mark.parametrize("damaged", [b"", b"epoch,lo", None])
def test_the_log_of_a_finished_training_is_written_again(examples: Examples, run: Path, damaged: bytes | None) -> None:
    log = run / "seed-0.csv"
    whole = log.read_bytes()
    log.unlink() if damaged is None else log.write_bytes(damaged)
    fit_head(examples(groups=2, per_group=1), 3, PLAIN, QUICK, run=run)
    assert log.read_bytes() == whole


@pytest.mark.ci
def test_a_full_disk_ends_a_training_with_one_sentence_and_the_last_epoch_stays(
    examples: Examples, tmp_path: Path
) -> None:
    clips, recipe, run = examples(groups=2, per_group=1), quick(epochs=3), tmp_path / "run"

    def fill(phase: str, line: LogLine) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(
            StorageError,
            match=rf"^{run}/seed-0\.npz was not written because the disk is full \(.*\); free 3 MiB there, or choose "
            r"another --output$",
        ):
            fit_head(clips, 3, PLAIN, recipe, run=run, tell=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {file.name for file in run.iterdir()} == {"recipe.json", "seed-0.csv", "seed-0.npz"}
    done: list[float] = []
    resumed = fit_head(clips, 3, PLAIN, recipe, run=run, tell=lambda phase, line: done.append(line["epoch"]))
    assert done == [2, 3]
    assert_same(resumed, fit_head(clips, 3, PLAIN, recipe))


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00junk"])
def test_features_that_are_damaged_while_a_head_is_trained_are_named(
    examples: Examples, tmp_path: Path, content: bytes
) -> None:
    """TensorFlow's own error, with tracebacks of its threads, does not reach the user."""
    clips = list(examples(groups=2))
    clips[-1] = replace(clips[-1], features=tmp_path / "damaged.npy")
    clips[-1].features.write_bytes(content)
    with pytest.raises(FeatureError, match=f"^{tmp_path / 'damaged.npy'} is damaged; remove it"):
        fit_head(clips, 3, PLAIN, quick(epochs=1, batch_size=2))


def test_an_epoch_is_reported_in_one_line() -> None:
    line = {"epoch": 3.0, "learning_rate": 0.0005, "loss": 1.23456, "accuracy": 0.5}
    assert epoch_line("seed-0", line) == "seed-0, epoch 3: learning_rate 0.0005, loss 1.235, accuracy 0.5"
