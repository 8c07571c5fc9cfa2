"""Everything that can be wrong with a clip.

ClipError
├── UnsupportedMedia     not a video of an allowed container and codec
├── CorruptClip          a video, but too damaged to sample
├── NoFrames             a video stream that holds no frame
├── ClipTooLong          more seconds or frames than allowed
├── ResolutionTooLarge   more pixels a frame than allowed
├── DecodeTimeout        took longer to decode than allowed
└── DecoderCrashed       the decoder process died
"""

from typing import ClassVar


class ClipError(Exception):
    """The clip is at fault. ``str(error)`` is one sentence for the person who sent it; ``code`` is stable."""

    code: ClassVar[str]


class UnsupportedMedia(ClipError):
    code = "unsupported_media"


class CorruptClip(ClipError):
    code = "corrupt_clip"


class NoFrames(ClipError):
    code = "no_frames"


class ClipTooLong(ClipError):
    code = "clip_too_long"


class ResolutionTooLarge(ClipError):
    code = "resolution_too_large"


class DecodeTimeout(ClipError):
    code = "decode_timeout"


class DecoderCrashed(ClipError):
    code = "decoder_crashed"
