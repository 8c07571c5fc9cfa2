"""The errors that Limelight raises on purpose, as one tree.

LimelightError
├── ClipError                the clip is at fault; has a stable ``code``
│   ├── UnsupportedMedia     not a video in an allowed container and codec
│   ├── CorruptClip          a video, but too damaged to sample
│   ├── NoFrames             the video stream holds no frame
│   ├── ClipTooLong          more seconds or frames than allowed
│   ├── ResolutionTooLarge   more pixels per frame than allowed
│   ├── DecodeTimeout        decoding took more processor time than allowed
│   ├── DecoderCrashed       the clip's decoder process died
│   └── DecoderFault         the clip's decoder failed in a way that no clip should cause
├── Overloaded               the service holds as many clips as it can; try again later
├── DeadlineExceeded         the answer was not ready by the request's deadline
├── EngineStopped            the engine has been closed, or its thread has died
├── BundleError              a bundle is missing, damaged or of another schema
├── EngineError              the network cannot run as configured
├── DecodersError            no decoder process can be started, or they do not answer
├── ListenError              the server cannot listen on its address
├── CommandError             a command of the CLI cannot do what was asked
│   └── ClipProblem          one clip has no answer, others may have one (defined in ``service.cli.clips``)
├── LibraryMissing           a library is not installed, for instance because its extra was not
└── Problem                  an HTTP request is refused (defined in ``service.http.problems``)

``str(error)`` is one sentence for the person who can act on it: it names the file, setting or address, and the remedy.
"""

from types import MappingProxyType
from typing import ClassVar

# The extras of the distribution that install libraries. All other libraries come with every installation.
EXTRAS = MappingProxyType(
    {"onnxruntime": "cpu"}
    | dict.fromkeys(
        ("MNN", "h5py", "keras", "matplotlib", "onnx", "scipy", "sklearn", "tensorflow", "tf2onnx"), "export"
    )
)


class LimelightError(Exception):
    """Base class of every error in this tree."""


class ClipError(LimelightError):
    """The clip is at fault. ``str(error)`` is written for its sender; ``code`` never changes."""

    code: ClassVar[str]


class UnsupportedMedia(ClipError):
    """The file is not a video in an allowed container and codec."""

    code = "unsupported_media"


class CorruptClip(ClipError):
    """The file is a video, but too damaged to sample."""

    code = "corrupt_clip"


class NoFrames(ClipError):
    """The video stream holds no frame."""

    code = "no_frames"


class ClipTooLong(ClipError):
    """The clip has more seconds or frames than allowed."""

    code = "clip_too_long"


class ResolutionTooLarge(ClipError):
    """A frame has more pixels than allowed."""

    code = "resolution_too_large"


class DecodeTimeout(ClipError):
    """Decoding took more processor time than allowed."""

    code = "decode_timeout"


class DecoderCrashed(ClipError):
    """The clip's decoder process died."""

    code = "decoder_crashed"


class DecoderFault(ClipError):
    """The clip's decoder raised an unexpected exception, or its answer is malformed or out of range."""

    code = "decoder_fault"


class Overloaded(LimelightError):
    """The service holds as many clips as it can.

    Args:
        detail: The error's text.
        retry_after_s: Seconds after which the clips that it holds should have been answered.
    """

    def __init__(self, detail: str, retry_after_s: float = 0.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(LimelightError):
    """The answer was not ready by the request's deadline."""


class EngineStopped(LimelightError):
    """The engine has been closed, or its thread has died: no further clip will be answered."""


class BundleError(LimelightError):
    """A bundle cannot be used. The message names the file and the remedy."""


class EngineError(LimelightError):
    """The network cannot run as configured. The message names the file or setting and the remedy."""


class DecodersError(LimelightError):
    """No decoder process can be started, or they do not answer. The message names the remedy."""


class ListenError(LimelightError):
    """The server cannot listen on its address. The message names the address and the remedy."""


class CommandError(LimelightError):
    """A command of the CLI cannot do what was asked. The message names the file or option and the remedy."""


class LibraryMissing(LimelightError):
    """A library is not installed, or not whole. The message names the command that installs it.

    Args:
        error: What the import of the library raised.
    """

    def __init__(self, error: ImportError) -> None:
        library = (error.name or "").partition(".")[0]
        extra = EXTRAS.get(library)
        wanted = f"'limelight[{extra}]'" if extra else "limelight"
        other = " (or 'limelight[gpu]' for an NVIDIA GPU)" if extra == "cpu" else ""
        super().__init__(
            f"this needs {library or 'a library'} ({error}); install it with `pip install {wanted}`{other}"
        )
