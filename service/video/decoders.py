"""Where clips are decoded: each in a process of its own, or in threads where there is no Linux to guard processes."""

import asyncio
import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from service.video.clip_file import ClipFile
from service.video.decoder import DecodedClip, DecodeLimits, decode_clip
from service.video.process import DecoderProcesses, DecodersError
from service.video.sandbox import Grants

logger = logging.getLogger(__name__)


class Decoders(Protocol):
    """Decodes clips, as many at a time as it is asked to."""

    @property
    def grants(self) -> Grants:
        """What keeps a hostile clip from doing harm."""

    async def decode(self, clip: bytes | ClipFile) -> DecodedClip:
        """As ``decode_clip`` does; and DecoderCrashed. Cancelling gives the clip up."""

    def close(self) -> None:
        """Free everything, also what is decoding. Blocks until that is done."""


def start_decoders(limits: DecodeLimits, *, memory_bytes: int, require_sandbox: bool = False) -> Decoders:
    """The safest that this system offers. Takes half a second.

    Args:
        limits: what one clip may cost.
        memory_bytes: memory that decoding one clip may take; threads do not heed it.
        require_sandbox: whether to do without decoders rather than without a layer of the sandbox.

    Raises:
        DecodersError: they cannot be started, or lack what is required.
    """
    decoders: Decoders
    if sys.platform == "linux":
        decoders = DecoderProcesses(limits, memory_bytes=memory_bytes)
    else:
        decoders = DecoderThreads(limits)
    missing = ", ".join(decoders.grants.missing)
    if missing and require_sandbox:
        decoders.close()
        raise DecodersError(
            f"LIMELIGHT_REQUIRE_SANDBOX is set and this system lacks {missing}; `limelight doctor` has the remedies"
        )
    if missing:
        logger.warning("clips are decoded without %s; `limelight doctor` says more", missing)
    else:
        logger.info("clips are decoded in a complete sandbox")
    return decoders


class DecoderThreads:
    """Decodes in this process, where a hostile clip can do what this process can."""

    grants = Grants()

    def __init__(self, limits: DecodeLimits) -> None:
        self._limits = limits
        self._threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")

    async def decode(self, clip: bytes | ClipFile) -> DecodedClip:
        """See Decoders. A clip once begun is finished or times out."""
        data = clip if isinstance(clip, bytes) else clip.read()
        return await asyncio.get_running_loop().run_in_executor(self._threads, decode_clip, data, self._limits)

    def close(self) -> None:
        """See Decoders."""
        self._threads.shutdown(cancel_futures=True)
