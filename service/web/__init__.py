"""The files of the page at ``/``, and the sample clip that the page, the demo and the doctor share."""

from pathlib import Path


def sample_clip() -> bytes:
    """The sample clip: four seconds of a drawn person doing jumping jacks, as MP4 (H.264, 320×240, 25 frames/s).

    It is output of ``model_export.rendering``, committed so that the service renders nothing.
    """
    return Path(__file__).with_name("sample.mp4").read_bytes()
