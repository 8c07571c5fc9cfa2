"""The exceptions of ``limelight-model``.

* LimelightModelError
  x WeightsError
    + SourceError
  x DatasetError
    + FoldError
  x FeatureError
  x HeadError
    + OutputsError
  x TrainingError
  x ProcessError
  x StorageError
  x ExportError
    + OwnBundleError
  x EvaluationError
    + ReportError

Each message is one sentence that names the file or option at fault and says what to do about it.
"""


class LimelightModelError(Exception):
    """Base class of the errors that a user of ``limelight-model`` can fix."""


class WeightsError(LimelightModelError):
    """The VGG19 weights could not be obtained or stored."""


class SourceError(WeightsError):
    """One source of the weights failed; ``fetch_weights`` tries the next one."""


class DatasetError(LimelightModelError):
    """A folder of clips or a list of an official split cannot be used."""


class FoldError(DatasetError):
    """A class has too few clips or source videos to be divided as asked."""


class FeatureError(LimelightModelError):
    """A folder of cached features cannot be used."""


class HeadError(LimelightModelError):
    """A trained head cannot be loaded, or does not belong to the bundle."""


class OutputsError(HeadError):
    """A bundle's network returns other arrays than its head."""


class TrainingError(LimelightModelError):
    """Training cannot start or continue."""


class ProcessError(LimelightModelError):
    """A process that was started to train or judge heads ended before it had finished."""


class StorageError(LimelightModelError):
    """A file was not written because the disk is full, or because another run writes to its folder."""


class ExportError(LimelightModelError):
    """A bundle was not written."""


class OwnBundleError(ExportError):
    """A bundle was not written because one that was made from somebody's own head is in its place."""


class EvaluationError(LimelightModelError):
    """An evaluation cannot continue."""


class ReportError(EvaluationError):
    """A report or a plot cannot be read or made."""
