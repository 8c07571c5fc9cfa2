"""Decodes the wanted frames of a presentation.

First sparingly: only what they depend on. Where that is not known to be safe, or anything is amiss, thoroughly: every
frame, by a decoder that has seen nothing before. The frames are those of a naive decode of everything either way.
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

# Codecs whose decoders give identical frames when unwanted non-reference frames are skipped (libdav1d, for one, loses
# wanted frames).
SKIPPABLE_CODECS = frozenset({"h264", "hevc", "mpeg4"})


class _DecodeTimes(Exception):
    """Frames come out in another order than their times, which thus are decode times."""


@dataclass(slots=True)
class _Found:
    """What a decode of everything came upon: slots of wanted and of all decoded frames, packets that failed."""

    wanted: set[int] = field(default_factory=set)
    decoded: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)


@dataclass(slots=True)
class FramePicker:
    """Decodes a presentation's wanted frames. ``reopen`` opens the clip's stream again, with a fresh decoder."""

    presentation: Presentation
    reopen: Callable[[], AbstractContextManager[tuple[InputContainer, VideoStream]]]
    limits: DecodeLimits
    check_time: Callable[[], None]
    resizer: Resizer = field(default_factory=Resizer)

    def pick(self, context: VideoCodecContext, into: Image) -> int:
        """Fills ``into``, ``(40, 224, 224, 3)``; returns how many frames, equal ones counted once, are damaged.

        A frame is damaged if it cannot be decoded; the one shown before it stands in. So it does where a packet holds
        no picture, as MPEG-4's "not coded" ones, which is no damage: the frame before stays on screen.

        Raises:
            CorruptClip: more than half of the frames are damaged, or none is whole.
            ResolutionTooLarge: a frame is larger than allowed.
            DecodeTimeout: it takes too long.
        """
        places = {slot: place for place, slot in enumerate(self.presentation.wanted)}
        wanted = {slot: into[place] for slot, place in places.items()}
        damaged = 0
        if not self._pick_sparingly(context, wanted):
            try:
                damaged = self._pick_from_all(wanted, by_output=not self.presentation.timed)
            except _DecodeTimes:
                damaged = self._pick_from_all(wanted, by_output=True)
        for place, slot in enumerate(self.presentation.wanted):
            if place != places[slot]:
                into[place] = wanted[slot]
        return damaged

    def _pick_sparingly(self, context: VideoCodecContext, wanted: Mapping[int, Image]) -> bool:
        """Puts each wanted frame in its slot's place; False where that does not work or is not known to be safe."""
        if self.presentation.doubtful or not self.presentation.timed:
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
                            return False  # a container without a table of keyframes calls every frame one
                        slot = slots[frame.pts]
                        if slot is not None and slot in wanted:
                            self.resizer.resize(frame, wanted[slot])
                            found.add(slot)
                context.flush_buffers()
        except av.error.FFmpegError:
            return False
        return len(found) == len(wanted)

    def _pick_from_all(self, wanted: Mapping[int, Image], *, by_output: bool) -> int:
        """As ``_pick_sparingly``, with stand-ins for frames that are missing. Returns how many are damaged."""
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
        stand_ins = {before[slot]: wanted[slot] for slot in missing}
        self._decode_all(stand_ins, by_output=by_output)
        for slot in missing:
            wanted[slot][:] = stand_ins[before[slot]]
        return damaged

    def _decode_all(self, wanted: Mapping[int, Image], *, by_output: bool) -> _Found:
        """Decodes everything until the wanted frames are in their places, passing over what fails.

        A frame's slot is its packet's, or the next of those whose packets did not fail (``by_output``).
        """
        found = _Found()
        slots = self.presentation.slots
        next_slots = (slot for number, slot in enumerate(slots) if slot is not None and number not in found.failed)
        latest = 0
        with self.reopen() as (_, stream):
            for frame in self._frames(stream.codec_context, found.failed):
                number = frame.pts
                if number is None:
                    continue
                if self.presentation.doubtful and not by_output and number < latest:
                    raise _DecodeTimes
                latest = number
                slot = next(next_slots, None) if by_output else slots[number]
                if slot is None:
                    continue
                found.decoded.add(slot)
                if slot in wanted:
                    self.resizer.resize(frame, wanted[slot])
                    found.wanted.add(slot)
                    if len(found.wanted) == len(wanted):
                        break
        return found

    def _frames(self, context: VideoCodecContext, failed: set[int]) -> Iterator[VideoFrame]:
        """All frames in the order they come out; adds the packets that cannot be decoded to `failed`."""
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
    """Stretches of packets, in decode order, that together hold all that the wanted frames need.

    A group of pictures without a wanted frame is left out, and so is the rest of a group after its last one. Frames
    that are shown before their group's keyframe may depend on the group before it, too.
    """
    slots, times = presentation.slots, presentation.times
    groups: list[list[int]] = []
    for number, packet in enumerate(presentation.packets):
        if packet.is_keyframe or not groups:
            groups.append([])
        groups[-1].append(number)
    needed: set[int] = set()
    opened: set[int] = set()  # by frames that are shown before the keyframe
    for place, group in enumerate(groups):
        here = [number for number in group if slots[number] in wanted]
        if min(times[number] for number in group) < times[group[0]]:
            opened.add(place)
        if here:
            needed.add(place)
            if place and min(times[number] for number in here) < times[group[0]]:
                needed.add(place - 1)
    run: list[int] = []
    for place in sorted(needed):
        run += groups[place]
        if place + 1 in needed and (place + 1 in opened or slots[run[-1]] in wanted):
            continue
        while slots[run[-1]] not in wanted:
            run.pop()
        yield run
        run = []
