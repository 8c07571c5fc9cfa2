"""Fitting a head to cached VGG19 features."""

from model_export.fitting.batches import predict_probabilities
from model_export.fitting.heads import FittedHead, check_fit, fit_head, hold_out, training_sizes
from model_export.fitting.log import LogLine, epoch_line
from model_export.fitting.start import Start

__all__ = [
    "FittedHead",
    "LogLine",
    "Start",
    "check_fit",
    "epoch_line",
    "fit_head",
    "hold_out",
    "predict_probabilities",
    "training_sizes",
]
