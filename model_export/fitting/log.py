"""The log of a training."""

LogLine = dict[str, float]
"""One epoch: ``epoch``, ``learning_rate``, ``loss``, ``cross_entropy``, ``accuracy`` and, with clips held out,
``val_loss`` and ``val_accuracy``.

``loss`` is what is minimised, with label smoothing, class weights and penalties. ``cross_entropy`` and ``val_loss`` are
the plain cross-entropy of training and held-out clips; the former is a mean over the epoch, with dropout."""


def epoch_line(name: str, line: LogLine) -> str:
    """Format one epoch for people."""
    figures = ", ".join(f"{key} {line[key]:.4g}" for key in line if key != "epoch")
    return f"{name}, epoch {line['epoch']:.0f}: {figures}"
