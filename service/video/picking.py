"""Decodes the frames of a track that are sampled.

The first attempt is sparse: it decodes only the packets that the wanted frames depend on. If that is not proven to be
right, or anything is not as expected, every packet is decoded with a fresh decoder, and what it puts out decides which
frames there are. Both give the frames that decoding everything in order gives, bit for bit.
"""

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from service.errors import CorruptClip
from service.video.headers import Structure
from service.video.limits import DecodeLimits
from service.video.media import check_decode_error
from service.video.presentation import Output, Presentation, Track, ascends
from service.video.resizing import IMAGE_SIZE, Image, Resizer


@dataclass(slots=True)
class FramePicker:
    """Decodes a track's wanted frames.

    Attributes:
        track: The clip's packets.
        reopen: Opens the clip again, with a fresh decoder.
        limits: Limits on the clip.
        check_time: Raises ``DecodeTimeout`` when the time limit has passed.
        resizer: Converts the frames, and knows the clip's size and orientation afterwards.
    """

    track: Track
    reopen: Callable[[], AbstractContextManager[tuple[InputContainer, VideoStream]]]
    limits: DecodeLimits
    check_time: Callable[[], None]
    resizer: Resizer

    def pick(self, context: VideoCodecContext, into: Image) -> Presentation:
        """Decode the wanted frames.

        A frame that cannot be decoded is damaged and is replaced by the one shown before it, or by the first that can
        be decoded.

        Args:
            context: The decoder of the open stream, not used before.
            into: Receives the frames: uint8 ``(40, 224, 224, 3)``.

        Returns:
            What is shown.

        Raises:
            CorruptClip: More than half of the wanted frames are damaged, or no frame can be decoded.
            ClipTooLong: The clip has more frames, or lasts longer, than allowed.
            ResolutionTooLarge: A frame is larger than allowed.
            DecodeTimeout: The time limit has passed.
        """
        presentation = self.track.expected()
        sources = presentation.sampled_sources()
        # Each frame is decoded once, into its first place.
        images = {source: into[place] for place, source in reversed([*enumerate(sources)])}
        if not self._pick_sparsely(context, presentation, images):
            presentation, images = self._pick_from_all(presentation)
            sources = presentation.sampled_sources()
        for source in set(sources):
            self.resizer.turn_upright(images[source])
        for place, source in enumerate(sources):
            if not np.may_share_memory(into[place], images[source]):
                into[place] = images[source]
        return presentation

    def _pick_sparsely(self, context: VideoCodecContext, expected: Presentation, images: Mapping[int, Image]) -> bool:
        """Decode only what the wanted frames depend on.

        Args:
            context: The decoder of the open stream, not used before.
            expected: What is expected to be shown.
            images: The array that receives the frame of each wanted packet.

        Returns:
            Whether every wanted frame was decoded; False also if a sparse decode is not proven to be right.
        """
        structure, packets = self.track.structure, self.track.packets
        if not structure or not expected.by_packet:
            return False
        first = cast(int, expected.sources[0])
        wanted = {*images, first}
        found: dict[int, int] = {}  # when each is shown, in the order of output
        try:
            for run in _runs(self.track, structure, wanted):
                for number in [*run, None]:
                    self.check_time()
                    if structure.skippable and number is not None:
                        context.skip_frame = "DEFAULT" if number in wanted or number in structure.empty else "NONREF"
                    for frame in context.decode(None if number is None else packets[number]):
                        self.limits.check_size(frame.width, frame.height)
                        if frame.is_corrupt or frame.pts is None or frame.pts in structure.empty or frame.pts in found:
                            return False
                        if frame.pts in wanted:
                            found[frame.pts] = cast(int, self.track.times[frame.pts])
                            self._take(frame, images.get(frame.pts), is_first=frame.pts == first)
                context.flush_buffers()
                context.reorder_depth = self.track.delay  # FFmpeg's decoder of H.264 forgets it
        except av.error.FFmpegError:
            return False
        return found.keys() == wanted and ascends([*found.values()])

    def _pick_from_all(self, expected: Presentation) -> tuple[Presentation, dict[int, Image]]:
        """Decode every packet.

        Args:
            expected: What is expected to be shown.

        Returns:
            What is shown, and the wanted frames by their index in the order of output.
        """
        guessed = set(expected.sampled_sources())
        images: dict[int, Image] = {}

        def is_guessed(index: int, packet: int | None) -> bool:
            source = packet if expected.by_packet else index
            if source not in guessed:
                return False
            guessed.remove(source)  # a packet may hold thousands of frames
            return True

        output = self._decode_all(is_guessed, images)
        presentation = self.track.decoded(output)
        self.limits.check_frames(len(presentation.sources))
        wanted = len(set(presentation.wanted))
        if 2 * presentation.damaged > wanted:
            raise CorruptClip(f"{presentation.damaged} of {wanted} sampled frames cannot be decoded")
        missing = set(presentation.sampled_sources()) - images.keys()
        if missing:
            self._decode_all(lambda index, _: index in missing, images)
        return presentation, images

    def _decode_all(self, is_wanted: Callable[[int, int | None], bool], images: dict[int, Image]) -> Output:
        """Decode every packet, skipping those that fail.

        Args:
            is_wanted: Whether a frame is wanted, by its index in the order of output and its packet.
            images: Receives the wanted frames by their index.
        """
        output = Output([], set(), 0)
        with self.reopen() as (_, stream):
            for frame in self._frames(stream.codec_context, output.failed):
                index = len(output.packets)
                output.packets.append(frame.pts)
                self.limits.check_frames(index)
                image = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8) if is_wanted(index, frame.pts) else None
                self._take(frame, image, is_first=index == 0)
                if image is not None:
                    images[index] = image
            return replace(output, delay=stream.codec_context.reorder_depth)

    def _take(self, frame: VideoFrame, image: Image | None, *, is_first: bool) -> None:
        if is_first:
            self.resizer.look_at_first(frame)
        if image is not None:
            self.resizer.resize(frame, image)

    def _frames(self, context: VideoCodecContext, failed: set[int]) -> Iterator[VideoFrame]:
        """Yield all frames as they are output, and add the indices of packets that cannot be decoded to ``failed``."""
        for number, packet in enumerate([*self.track.packets, None]):
            self.check_time()
            try:
                frames = context.decode(packet)
            except av.error.FFmpegError as error:
                check_decode_error(error, context, self.limits)
                if packet is not None:
                    failed.add(number)
                continue
            for frame in frames:
                self.limits.check_size(frame.width, frame.height)
                yield frame


def _runs(track: Track, structure: Structure, wanted: Set[int]) -> Iterator[list[int]]:
    """Yield runs of packets, as indices in decode order, that together hold all that the wanted frames depend on.

    Groups of pictures without a wanted frame are left out, as are the packets of a group after its last wanted frame.
    Frames that are shown before their group's entry may also depend on the group before it.
    """
    times, empty = cast(list[int], track.times), structure.empty  # those of empty packets may be unknown
    groups: list[list[int]] = []
    for number in range(len(track.packets)):
        if number in structure.entries or not groups:
            groups.append([])
        groups[-1].append(number)
    needed: set[int] = set()
    open_groups: set[int] = set()  # those with frames that are shown before their entry
    for place, group in enumerate(groups):
        start = times[group[0]]
        leading = {n for n in group if n not in empty and times[n] < start}
        if leading:
            open_groups.add(place)
        if wanted & set(group):
            needed.add(place)
            if place and wanted & leading:
                needed.add(place - 1)
    run: list[int] = []
    for place in sorted(needed):
        run += groups[place]
        if place + 1 in needed and (place + 1 in open_groups or run[-1] in wanted):
            continue
        last = max(n for n in run if n in wanted)
        while run[-1] > last + 1 or (run[-1] > last and run[-1] not in empty):  # keep a frame's second field
            run.pop()
        yield run
        run = []
