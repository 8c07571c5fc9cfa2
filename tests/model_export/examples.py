"""Examples without features, for tests that need only classes and groups."""

from collections.abc import Sequence
from pathlib import Path

from model_export.data.examples import Example

LABELS = ("Diving", "PullUps", "Surfing")


def example(label: int, group: int, clip: int = 0) -> Example:
    name = f"v_{LABELS[label]}_g{group:02}_c{clip:02}"
    return Example(Path(f"{name}.npy"), label, f"v_{LABELS[label]}_g{group:02}", f"{LABELS[label]}/{name}.avi")


def examples(*clips_of_groups: Sequence[int]) -> list[Example]:
    """Build examples from the number of clips of each group, for each class."""
    return [
        example(label, group, clip)
        for label, groups in enumerate(clips_of_groups)
        for group, clips in enumerate(groups)
        for clip in range(clips)
    ]
