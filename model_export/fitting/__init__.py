"""Fitting a head to cached VGG19 features."""

from model_export.fitting.batches import predict_probabilities
from model_export.fitting.heads import FittedHead, fit_head, training_sizes
from model_export.fitting.log import LogLine, epoch_line

__all__ = ["FittedHead", "LogLine", "epoch_line", "fit_head", "predict_probabilities", "training_sizes"]
