"""Training and testing contenders on folds, and resuming after an interruption."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model_export.data.examples import Example
from model_export.data.folds import Fold, grouped_folds
from model_export.errors import EvaluationError
from model_export.judging.cross_validation import Contender, Fit, cross_validate
from model_export.judging.results import Results
from model_export.network.arrays import Probabilities
from tests.model_export.examples import LABELS, examples
from tests.model_export.reporting import Recording


def oracle(wrong: Sequence[str] = ()) -> Fit:
    """Predict every clip correctly, except the named ones, which are predicted as the next class."""

    def fit(train: Sequence[Example], test: Sequence[Example]) -> Probabilities:
        return np.eye(3)[[(clip.label + (clip.name in wrong)) % 3 for clip in test]]

    return fit


def refuses(train: Sequence[Example], test: Sequence[Example]) -> Probabilities:
    raise AssertionError("trained again")


class TestCrossValidation:
    clips = examples([2] * 4, [2] * 4, [2] * 4)

    def test_every_prediction_is_matched_to_its_clip(self) -> None:
        wrong = self.clips[5].name
        folds = grouped_folds(self.clips, 4)
        perfect, flawed = cross_validate(
            self.clips, folds, [Contender("A", oracle(), "a"), Contender("B", oracle([wrong]), "b")], LABELS
        )
        assert (perfect.contender, perfect.recipe, flawed.contender) == ("A", "a", "B")
        assert perfect.correct.all()
        assert [name for name, right in zip(flawed.names, flawed.correct, strict=True) if not right] == [wrong]
        by_name = {clip.name: clip for clip in self.clips}
        assert [by_name[name].label for name in flawed.names] == flawed.truth.tolist()
        assert [by_name[name].group for name in flawed.names] == list(flawed.groups)
        for number, fold in enumerate(folds):
            tested = {name for name, found in zip(flawed.names, flawed.folds, strict=True) if found == number}
            assert tested == {self.clips[i].name for i in fold.test}

    def test_contenders_are_trained_on_the_other_folds_only(self) -> None:
        seen: list[tuple[set[str], set[str]]] = []

        def fit(train: Sequence[Example], test: Sequence[Example]) -> Probabilities:
            seen.append(({clip.name for clip in train}, {clip.name for clip in test}))
            return np.eye(3)[[clip.label for clip in test]]

        cross_validate(self.clips, grouped_folds(self.clips, 4), [Contender("A", fit, "")], LABELS)
        assert len(seen) == 4
        for train, test in seen:
            assert not train & test
            assert len(train | test) == len(self.clips)

    def test_clips_with_others_of_their_video_in_training_are_marked(self) -> None:
        def leaked(folds: Sequence[Fold]) -> Results:
            return cross_validate(self.clips, folds, [Contender("A", oracle(), "")], LABELS)[0]

        assert not leaked(grouped_folds(self.clips, 4)).leaked.any()
        one_cut_each = Fold(train=tuple(range(0, 24, 2)), test=(1, 3, 5))
        assert leaked([one_cut_each]).leaked.all()

    def test_each_training_is_reported(self) -> None:
        reporter = Recording()
        cross_validate(
            self.clips, grouped_folds(self.clips, 2), [Contender("A", oracle(), "")], LABELS, reporter=reporter
        )
        assert reporter.lines == [
            "A, fold 1: started",
            "A, fold 1: finished",
            "A, fold 2: started",
            "A, fold 2: finished",
        ]

    def test_probabilities_that_are_not_finite_are_an_error(self) -> None:
        contender = Contender("base", lambda _, test: np.full((len(test), 3), np.nan), "")
        with pytest.raises(EvaluationError, match=r"^the training of base diverged; lower its learning rate$"):
            cross_validate(self.clips, grouped_folds(self.clips, 2), [contender], LABELS)

    def test_probabilities_of_the_wrong_shape_are_an_error(self) -> None:
        contender = Contender("base", lambda _, test: np.ones((len(test), 2)), "")
        with pytest.raises(ValueError, match=r"base returned \(12, 2\) for 12 clips and 3 classes"):
            cross_validate(self.clips, grouped_folds(self.clips, 2), [contender], LABELS)


class TestResumption:
    clips = examples([2] * 4, [2] * 4, [2] * 4)
    folds = grouped_folds(clips, 4)
    contender = Contender("plain LSTM", oracle([clips[5].name]), "units=256")

    def run(self, kept: Path, **changes: object) -> Results:
        facts = {"examples": self.clips, "folds": self.folds, "contenders": [self.contender]} | changes
        return cross_validate(labels=LABELS, kept=kept, **facts)[0]  # type: ignore[arg-type]

    def test_kept_predictions_are_reused(self, tmp_path: Path) -> None:
        first = self.run(tmp_path / "log")
        reporter = Recording()
        again = self.run(tmp_path / "log", contenders=[replace(self.contender, fit=refuses)], reporter=reporter)
        np.testing.assert_array_equal(again.probabilities, first.probabilities)
        assert reporter.lines == [f"plain LSTM, fold {fold}: reused" for fold in (1, 2, 3, 4)]

    def test_an_interrupted_run_continues_with_the_fold_it_was_in(self, tmp_path: Path) -> None:
        left = iter([None, None, KeyboardInterrupt()])
        trained = []

        def fit(train: Sequence[Example], test: Sequence[Example]) -> Probabilities:
            if error := next(left, None):
                raise error
            trained.append(test)
            return self.contender.fit(train, test)

        with pytest.raises(KeyboardInterrupt):
            self.run(tmp_path, contenders=[replace(self.contender, fit=fit)])
        found = self.run(tmp_path, contenders=[replace(self.contender, fit=fit)])
        assert len(trained) == 4, "two folds before the interruption, two after"
        np.testing.assert_array_equal(found.probabilities, self.run(tmp_path / "other").probabilities)

    @pytest.mark.parametrize(
        "changes",
        [
            {"contenders": [Contender("plain LSTM", refuses, "units=128")]},
            {"contenders": [Contender("LSTM", refuses, "units=256")]},
            {"folds": grouped_folds(clips, 4, seed=7)},
            {"examples": [replace(clip, features=Path(f"new-{clip.features.name}")) for clip in clips]},
            {"examples": [replace(clip, label=2 - clip.label) for clip in clips]},
        ],
        ids=["recipe", "name", "folds", "features", "labels"],
    )
    def test_predictions_of_other_settings_or_clips_are_not_reused(
        self, tmp_path: Path, changes: dict[str, object]
    ) -> None:
        self.run(tmp_path)
        changes.setdefault("contenders", [replace(self.contender, fit=refuses)])
        with pytest.raises(AssertionError, match="trained again"):
            self.run(tmp_path, **changes)

    def test_predictions_among_fewer_classes_are_not_reused(self, tmp_path: Path) -> None:
        """As of an official split, after the folder of a class that it does not list was added."""
        more = replace(self.contender, fit=lambda _, test: np.full((len(test), 4), 0.25))
        self.run(tmp_path)
        (found,) = cross_validate(self.clips, self.folds, [more], (*LABELS, "Waving"), kept=tmp_path)
        assert found.probabilities.shape == (len(self.clips), 4)

    def test_predictions_are_reused_after_clips_were_renamed(self, tmp_path: Path) -> None:
        first = self.run(tmp_path)
        renamed = [replace(clip, name=f"new {clip.name}", group=f"new {clip.group}") for clip in self.clips]
        again = self.run(tmp_path, examples=renamed, contenders=[replace(self.contender, fit=refuses)])
        assert again.figures() == first.figures()

    def test_predictions_are_reused_after_the_features_folder_was_moved(self, tmp_path: Path) -> None:
        self.run(tmp_path)
        moved = [replace(clip, features="elsewhere" / clip.features) for clip in self.clips]
        self.run(tmp_path, examples=moved, contenders=[replace(self.contender, fit=refuses)])

    @pytest.mark.parametrize("damage", [b"", b"junk", b"\x93NUMPY\x01\x00"])
    def test_a_damaged_file_of_predictions_is_named(self, tmp_path: Path, damage: bytes) -> None:
        self.run(tmp_path)
        path = next(tmp_path.iterdir())
        path.write_bytes(damage)
        with pytest.raises(EvaluationError, match=rf"^{path} cannot be read .*; remove it$"):
            self.run(tmp_path)

    def test_a_file_of_predictions_of_another_shape_is_named(self, tmp_path: Path) -> None:
        self.run(tmp_path)
        path = next(tmp_path.iterdir())
        np.save(path, np.zeros((2, 3)))
        with pytest.raises(EvaluationError, match=rf"^{path} holds predictions of shape \(2, 3\)"):
            self.run(tmp_path)

    def test_a_file_of_predictions_that_are_no_numbers_is_named(self, tmp_path: Path) -> None:
        self.run(tmp_path)
        path = next(tmp_path.iterdir())
        np.save(path, np.full_like(np.load(path), np.nan))
        with pytest.raises(
            EvaluationError, match=rf"^{path} holds predictions that are not finite numbers; remove it$"
        ):
            self.run(tmp_path)
