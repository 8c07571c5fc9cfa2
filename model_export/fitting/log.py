"""The log of a training."""

LogLine = dict[str, float]
"""One epoch: ``epoch``, ``learning_rate``, ``loss``, ``accuracy`` and, with clips held out, ``val_loss`` and
``val_accuracy``."""


def epoch_line(name: str, line: LogLine) -> str:
    """Format one epoch for people."""
    figures = ", ".join(f"{key} {line[key]:.4g}" for key in line if key != "epoch")
    return f"{name}, epoch {line['epoch']:.0f}: {figures}"
