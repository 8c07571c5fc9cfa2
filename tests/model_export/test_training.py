import numpy as np
import pytest

from model_export.training import Example, Recipe, TrainingError, train

CHANNELS = 8


def examples(groups: int, per_group: int = 2, classes: int = 3) -> list[Example]:
    """Clips whose class is the channel that is active, in one cell that wanders; the group adds its own background."""
    random = np.random.default_rng(0)
    made = []
    for label in range(classes):
        for group in range(groups):
            background = random.uniform(0, 0.3, CHANNELS)
            for _ in range(per_group):
                features = background + random.uniform(0, 0.2, (40, 7, 7, CHANNELS))
                for step, cell in enumerate(random.integers(0, 7, (40, 2))):
                    features[step, cell[0], cell[1], label] += 6.0
                made.append(Example(features.astype(np.float16), label, f"{label}/{group}"))
    return made


def test_learns_what_is_in_one_cell_and_scores_it_on_groups_it_did_not_see() -> None:
    result = train(examples(groups=4), 3, Recipe(epochs=25, learning_rate=3e-3, batch_size=8))
    assert result.holdout_accuracy > 0.9
    assert result.holdout_clips == 6, "one group of four, two clips of each class"
    assert result.training_clips == 24, "the head that is kept has seen all"
    features = np.stack([example.features for example in examples(groups=4)]).astype(np.float32)
    labels = [example.label for example in examples(groups=4)]
    named = result.model.predict(features, verbose=0)["probabilities"].argmax(axis=1)
    assert (named == labels).mean() > 0.9


def test_the_same_seed_gives_the_same_head() -> None:
    first, second = (train(examples(groups=4, per_group=1), 3, Recipe(epochs=1)).model.get_weights() for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_too_few_groups_to_hold_some_out_are_refused() -> None:
    with pytest.raises(TrainingError, match="only 3 groups, 4 are needed"):
        train(examples(groups=3), 3, Recipe())
