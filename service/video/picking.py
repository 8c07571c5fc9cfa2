"""Decodes the wanted frames of a presentation.

The first attempt is sparse: it decodes only the packets that the wanted frames depend on. If that is not known to be
safe, or anything goes wrong, every frame is decoded with a fresh decoder. Both give the frames that decoding everything
in order gives, bit for bit.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import av
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from service.errors import CorruptClip
from service.video.limits import DecodeLimits
from service.video.media import check_decode_error
from service.video.presentation import Presentation
from service.video.resizing import Image, Resizer

# Codecs whose decoders give identical frames when unwanted non-reference frames are skipped. Others may not: libdav1d
# loses wanted frames.
SKIPPABLE_CODECS = frozenset({"h264", "hevc", "mpeg4"})


class _DecodeTimesError(Exception):
    """Frames are output in another order than their times, so the times are decode times."""


@dataclass(slots=True)
class _Pass:
    """The outcome of decoding every packet.

    Attributes:
        wanted: Slots of the wanted frames that were decoded.
        decoded: Slots of all frames that were decoded.
        failed: Indices of the packets that could not be decoded.
    """

    wanted: set[int] = field(default_factory=set)
    decoded: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)


@dataclass(slots=True)
class FramePicker:
    """Decodes a presentation's wanted frames.

    Attributes:
        presentation: The clip's packets and which frames are wanted.
        reopen: Opens the clip again, with a fresh decoder.
        limits: Limits on the clip.
        check_time: Raises ``DecodeTimeout`` when the time limit has passed.
        resizer: Converts the frames, and holds the size and rotation of the last one.
    """

    presentation: Presentation
    reopen: Callable[[], AbstractContextManager[tuple[InputContainer, VideoStream]]]
    limits: DecodeLimits
    check_time: Callable[[], None]
    resizer: Resizer = field(default_factory=Resizer)

    def pick(self, context: VideoCodecContext, into: Image) -> int:
        """Decode the wanted frames.

        A frame that cannot be decoded is damaged and is replaced by the one shown before it, or by the first that can
        be decoded. A packet may also hold no picture, as MPEG-4's "not coded" ones. This is not damage: the frame
        before it stays on screen.

        Args:
            context: The decoder of the open stream, not used before.
            into: Receives the frames: uint8 ``(40, 224, 224, 3)``.

        Returns:
            The number of damaged frames; one that is wanted repeatedly counts once.

        Raises:
            CorruptClip: More than half of the wanted frames are damaged, or no frame can be decoded.
            ResolutionTooLarge: A frame is larger than allowed.
            DecodeTimeout: The time limit has passed.
        """
        places = {slot: place for place, slot in enumerate(self.presentation.wanted)}
        wanted = {slot: into[place] for slot, place in places.items()}
        damaged = 0
        if not self._pick_sparsely(context, wanted):
            try:
                damaged = self._pick_from_all(wanted, by_output=not self.presentation.timed)
            except _DecodeTimesError:
                damaged = self._pick_from_all(wanted, by_output=True)
        for image in wanted.values():
            self.resizer.turn_upright(image)
        for place, slot in enumerate(self.presentation.wanted):
            if place != places[slot]:
                into[place] = wanted[slot]
        return damaged

    def _resize(self, frame: VideoFrame, into: Image) -> None:
        if not self.resizer.width:
            self.resizer.look_at_first(frame)
        self.resizer.resize(frame, into)

    def _pick_sparsely(self, context: VideoCodecContext, wanted: Mapping[int, Image]) -> bool:
        """Decode only what the wanted frames depend on.

        Args:
            context: The decoder of the open stream, not used before.
            wanted: The array that receives the frame of each wanted slot.

        Returns:
            Whether every wanted frame was decoded; False also if a sparse decode is not known to be safe.
        """
        if self.presentation.maybe_decode_times or not self.presentation.timed:
            return False
        packets, slots = self.presentation.packets, self.presentation.slots
        can_skip = context.codec.canonical_name in SKIPPABLE_CODECS
        found: set[int] = set()
        try:
            for run in _runs(self.presentation, wanted):
                for number in [*run, None]:
                    self.check_time()
                    if can_skip and number is not None:
                        context.skip_frame = "DEFAULT" if slots[number] in wanted else "NONREF"
                    for frame in context.decode(None if number is None else packets[number]):
                        self.limits.check_size(frame.width, frame.height)
                        if frame.pts is None or (packets[frame.pts].is_keyframe and not frame.key_frame):
                            return False  # containers without a keyframe table mark every packet as a keyframe
                        slot = slots[frame.pts]
                        if slot is not None and slot in wanted:
                            self._resize(frame, wanted[slot])
                            found.add(slot)
                context.flush_buffers()
        except av.error.FFmpegError:
            return False
        return len(found) == len(wanted)

    def _pick_from_all(self, wanted: Mapping[int, Image], *, by_output: bool) -> int:
        """Decode every frame, and replace wanted frames that are missing. Returns the number of damaged ones.

        Args:
            wanted: The array that receives the frame of each wanted slot.
            by_output: See ``_decode_all``.
        """
        found = self._decode_all(wanted, by_output=by_output)
        missing = wanted.keys() - found.wanted
        if not missing:
            return 0
        if not found.decoded:
            raise CorruptClip("none of the clip's frames can be decoded")
        decoded = sorted(found.decoded)
        packets, slots = self.presentation.packets, self.presentation.slots
        lost = {slots[number] for number, packet in enumerate(packets) if number in found.failed or packet.is_corrupt}
        damaged = sum(slot in lost or slot < decoded[0] for slot in missing)
        if 2 * damaged > len(wanted):
            raise CorruptClip(f"{damaged} of {len(wanted)} sampled frames cannot be decoded")
        before = {slot: decoded[max(0, bisect_left(decoded, slot) - 1)] for slot in missing}
        replacements = {before[slot]: wanted[slot] for slot in missing}
        self._decode_all(replacements, by_output=by_output)
        for slot in missing:
            wanted[slot][:] = replacements[before[slot]]
        return damaged

    def _decode_all(self, wanted: Mapping[int, Image], *, by_output: bool) -> _Pass:
        """Decode every packet, skipping those that fail, until all wanted frames are decoded.

        Args:
            wanted: The array that receives the frame of each wanted slot.
            by_output: Give frames the slots of the packets that did not fail, in the order of output, instead of each
                frame the slot of its own packet.

        Raises:
            _DecodeTimesError: The presentation's times turn out to be decode times (only without ``by_output``).
        """
        found = _Pass()
        slots = self.presentation.slots
        next_slots = (slot for number, slot in enumerate(slots) if slot is not None and number not in found.failed)
        latest = 0
        with self.reopen() as (_, stream):
            for frame in self._frames(stream.codec_context, found.failed):
                number = frame.pts
                if number is None:
                    continue
                if self.presentation.maybe_decode_times and not by_output and number < latest:
                    raise _DecodeTimesError
                latest = number
                slot = next(next_slots, None) if by_output else slots[number]
                if slot is None:
                    continue
                found.decoded.add(slot)
                if slot in wanted:
                    self._resize(frame, wanted[slot])
                    found.wanted.add(slot)
                    if len(found.wanted) == len(wanted):
                        break
        return found

    def _frames(self, context: VideoCodecContext, failed: set[int]) -> Iterator[VideoFrame]:
        """Yield all frames as they are output, and add the indices of packets that cannot be decoded to ``failed``."""
        for number, packet in enumerate([*self.presentation.packets, None]):
            self.check_time()
            try:
                frames = context.decode(packet)
            except av.error.FFmpegError as error:
                check_decode_error(error, context, self.limits)
                failed.add(number)
                continue
            for frame in frames:
                self.limits.check_size(frame.width, frame.height)
                yield frame


def _runs(presentation: Presentation, wanted: Collection[int]) -> Iterator[list[int]]:
    """Yield runs of packets, as indices in decode order, that together hold all that the wanted frames depend on.

    Groups of pictures without a wanted frame are left out, as are the packets of a group after its last wanted frame.
    Frames that are shown before their group's keyframe may also depend on the group before it.
    """
    slots, times = presentation.slots, presentation.times
    groups: list[list[int]] = []
    for number, packet in enumerate(presentation.packets):
        if packet.is_keyframe or not groups:
            groups.append([])
        groups[-1].append(number)
    needed: set[int] = set()
    open_groups: set[int] = set()  # those with frames that are shown before their keyframe
    for place, group in enumerate(groups):
        here = [number for number in group if slots[number] in wanted]
        if min(times[number] for number in group) < times[group[0]]:
            open_groups.add(place)
        if here:
            needed.add(place)
            if place and min(times[number] for number in here) < times[group[0]]:
                needed.add(place - 1)
    run: list[int] = []
    for place in sorted(needed):
        run += groups[place]
        if place + 1 in needed and (place + 1 in open_groups or slots[run[-1]] in wanted):
            continue
        while slots[run[-1]] not in wanted:
            run.pop()
        yield run
        run = []
