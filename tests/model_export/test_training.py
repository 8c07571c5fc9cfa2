import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_export.examples import Example
from model_export.training import LogLine, Recipe, TrainingError, TrainingResult, predict, train

CHANNELS = 8
QUICK = Recipe(
    epochs=2,
    batch_size=8,
    holdout=0,
    learning_rate=3e-3,
    feature_scaling="none",
    feature_dropout=0.0,
    doubly_stochastic=0.0,
)

Examples = Callable[..., list[Example]]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """Clips whose class is the channel that is active, in one cell that wanders; the group adds its own background."""

    def make(groups: int, per_group: int = 2, classes: int = 3) -> list[Example]:
        tmp_path = tmp_path_factory.mktemp("examples")
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
                    plain, flipped = (tmp_path / f"{label}-{group}-{clip}{view}.npy" for view in ("", ".flipped"))
                    np.save(plain, features.astype(np.float16))
                    np.save(flipped, features[:, :, ::-1].astype(np.float16))
                    made.append(Example(plain, label, f"{label}/{group}", name, flipped))
        return made

    return make


@pytest.fixture(scope="module")
def plain(examples: Examples) -> TrainingResult:
    """A head trained on two groups with the settings of `QUICK`."""
    return train(examples(groups=2), 3, QUICK)


def weights(result: TrainingResult) -> list[Any]:
    return list(result.model.get_weights())


def assert_same(first: TrainingResult, second: TrainingResult) -> None:
    for one, other in zip(weights(first), weights(second), strict=True):
        np.testing.assert_array_equal(one, other)


def test_learns_what_is_in_one_cell_and_scores_it_on_groups_it_did_not_see(examples: Examples) -> None:
    clips = examples(groups=4)
    result = train(clips, 3, replace(QUICK, epochs=25, patience=25, holdout=0.25))
    assert result.holdout_accuracy is not None
    assert result.holdout_accuracy > 0.9
    assert result.holdout_clips == 6, "one group of four, two clips of each class"
    assert result.training_clips == 24, "the head that is kept has seen all"
    named = predict(result.model, clips).argmax(axis=1)
    assert (named == [clip.label for clip in clips]).mean() > 0.9


def test_without_clips_held_out_all_epochs_are_trained(examples: Examples) -> None:
    lines: list[LogLine] = []
    result = train(examples(groups=2), 3, QUICK, tell=lambda phase, line: lines.append(line))
    assert result.epochs == (2,)
    assert result.holdout_accuracy is None
    assert [line["epoch"] for line in lines] == [1, 2]
    assert "val_loss" not in lines[0]


def test_stops_when_the_held_out_loss_no_longer_falls(examples: Examples) -> None:
    phases: list[str] = []
    recipe = replace(QUICK, epochs=30, patience=1, holdout=0.25, learning_rate=1.0, schedule="constant")
    result = train(examples(groups=4), 3, recipe, tell=lambda phase, line: phases.append(phase))
    assert phases.count("seed-0-holdout") < 30
    assert phases.count("seed-0") == result.epochs[0]


def test_a_cosine_schedule_ends_near_nought_and_a_constant_one_does_not(examples: Examples, tmp_path: Path) -> None:
    rates: dict[str, list[float]] = {"cosine": [], "constant": []}
    for schedule in ("cosine", "constant"):
        recipe = replace(QUICK, epochs=5, schedule=schedule)
        run = tmp_path / schedule
        train(examples(2, 1), 3, recipe, run=run)
        with (run / "seed-0.csv").open() as log:
            rates[schedule] = [float(line["learning_rate"]) for line in csv.DictReader(log)]
    assert rates["constant"] == pytest.approx([3e-3] * 5)
    assert rates["cosine"][0] == pytest.approx(3e-3)
    assert rates["cosine"][-1] < 1e-3
    assert rates["cosine"] == sorted(rates["cosine"], reverse=True)


def test_the_same_seed_gives_the_same_head_and_another_seed_another(examples: Examples) -> None:
    clips = examples(groups=4, per_group=1)
    first, second, other = (train(clips, 3, replace(QUICK, seed=seed)) for seed in (0, 0, 1))
    assert_same(first, second)
    assert any((one != two).any() for one, two in zip(weights(first), weights(other), strict=True))


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
def test_each_setting_changes_what_is_learnt(examples: Examples, plain: TrainingResult, change: dict[str, Any]) -> None:
    changed = train(examples(groups=2), 3, replace(QUICK, **change))
    assert any((one != two).any() for one, two in zip(weights(plain), weights(changed), strict=True))


def test_members_are_averaged_in_one_head(examples: Examples, plain: TrainingResult) -> None:
    clips = examples(groups=2)
    both = train(clips, 3, replace(QUICK, members=2))
    alone = [plain.model, train(clips, 3, replace(QUICK, seed=1)).model]
    np.testing.assert_allclose(
        predict(both.model, clips), np.mean([predict(head, clips) for head in alone], axis=0), atol=1e-6
    )
    assert both.epochs == (2, 2)


def test_an_interrupted_run_comes_to_the_same_head(examples: Examples, tmp_path: Path) -> None:
    clips, recipe = examples(groups=4), replace(QUICK, epochs=4, holdout=0.25, patience=4, flip=True)
    whole = train(clips, 3, recipe)

    for plug_pulled_after in (("seed-0-holdout", 2), ("seed-0", 1)):

        def pull(phase: str, line: LogLine, after: tuple[str, int] = plug_pulled_after) -> None:
            if (phase, line["epoch"]) == after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(clips, 3, recipe, run=tmp_path / "run", tell=pull)
    done: list[tuple[str, float]] = []
    resumed = train(
        clips, 3, recipe, run=tmp_path / "run", tell=lambda phase, line: done.append((phase, line["epoch"]))
    )
    assert_same(whole, resumed)
    assert ("seed-0", 1) not in done, "what was trained is not trained again"
    assert resumed.holdout_accuracy == pytest.approx(whole.holdout_accuracy)


def test_logs_every_epoch_as_csv(examples: Examples, tmp_path: Path) -> None:
    train(examples(groups=4), 3, replace(QUICK, holdout=0.25), run=tmp_path / "run")
    lines = (tmp_path / "run" / "seed-0-holdout.csv").read_text().splitlines()
    assert lines[0] == "epoch,learning_rate,loss,accuracy,val_loss,val_accuracy"
    assert len(lines) == 3


@pytest.mark.parametrize(("change", "named"), [({"variant": "base"}, "variant"), ({"seed": 5}, "seed")])
def test_checkpoints_of_another_recipe_are_refused(
    examples: Examples, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    clips, run = examples(groups=2, per_group=1), tmp_path / "run"
    train(clips, 3, QUICK, run=run)
    with pytest.raises(TrainingError, match=f"recipe.json: its checkpoints are of another {named}; remove"):
        train(clips, 3, replace(QUICK, **change), run=run)


def test_checkpoints_of_other_clips_are_refused(examples: Examples, tmp_path: Path) -> None:
    clips, run = examples(groups=2, per_group=1), tmp_path / "run"
    train(clips, 3, QUICK, run=run)
    with pytest.raises(TrainingError, match="of another set of features"):
        train(clips[1:], 3, QUICK, run=run)
    (run / "recipe.json").write_text("{")
    with pytest.raises(TrainingError, match="is damaged; remove"):
        train(clips, 3, QUICK, run=run)


def test_a_class_with_one_group_cannot_hold_some_out(examples: Examples, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"one source video.*--holdout 0"):
        train(examples(groups=1), 3, replace(QUICK, holdout=0.25), run=tmp_path / "run")
    train(examples(groups=1), 3, QUICK, run=tmp_path / "run")  # the remedy is open


def test_a_loss_that_is_no_number_ends_the_run(examples: Examples) -> None:
    clips = examples(groups=2)
    np.save(clips[0].features, np.full((40, 7, 7, CHANNELS), np.nan, np.float16))
    with pytest.raises(TrainingError, match="the loss is nan after epoch 1"):
        train(clips, 3, QUICK)
