"""Puts the timestamps of a stream's packets on one timeline, as players do.

Recordings are joined, cameras lose their clocks, and the 33-bit clock of MPEG streams starts again every 26.5 hours. A
player that meets such a jump shows the next frame after the usual time. The limits are those of ffplay.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import cast

from av.video.stream import VideoStream

from service.video.headers import VideoPacket

# A longer time between two packets is a jump. Timestamps of MPEG streams and Ogg are expected to jump.
LONGEST_STEP_S, LONGEST_STEP_OF_CLOCKS_S = 3600, 10
# Decode times that go back by more than this start again. FFmpeg derives those of other containers from the
# presentation times, and they may go back by as many frames as a codec reorders: at most 16, and the frame itself.
STEP_BACK_OF_CLOCKS_S = Fraction(1, 10)
STEP_BACK_FRAMES = 17


def usual_duration(packets: Sequence[VideoPacket], stream: VideoStream, time_base: Fraction) -> Fraction:
    """Return the duration, in ticks, that is assumed for a frame whose packet has none."""
    known = sorted(filter(None, map(packet_duration, packets)))
    if known:
        return Fraction(known[len(known) // 2])
    rate = stream.guessed_rate or stream.average_rate
    return 1 / (rate * time_base) if rate else Fraction(1)


def packet_duration(packet: VideoPacket) -> int:
    """Return a packet's duration in ticks; 0 if it has no valid one."""
    return max(packet.duration or 0, 0)


def timeline(
    packets: Sequence[VideoPacket],
    usual: Fraction,
    time_base: Fraction,
    *,
    clocked: bool,
    by_decode_times: bool = False,
) -> list[int | None]:
    """Return when each packet's frame is shown, in ticks; ``None`` where that is unknown.

    These are the presentation times, or the decode times if no packet has a presentation time, moved where they jump.

    Args:
        packets: All packets of the stream in decode order.
        usual: Usual duration of a frame, in ticks.
        time_base: Length of a tick, in seconds.
        clocked: Whether the container's timestamps are readings of a clock that may jump (MPEG streams, Ogg).
        by_decode_times: Take decode times only.
    """
    times = [packet.pts for packet in packets]
    if by_decode_times or all(time is None for time in times):
        times = [packet.dts for packet in packets]
    if len(times) > 1 and len(set(times)) == 1:  # they say nothing
        return [None] * len(times)
    starts = [0, *_jumps(packets, usual, time_base, clocked=clocked), len(packets)]
    if not clocked and any(stop - start < STEP_BACK_FRAMES for start, stop in pairwise(starts[:-1])):
        return times  # no recording is so short: they are out of order
    end: int | None = None
    for start, stop in pairwise(starts):
        shown = [n for n in range(start, stop) if not packets[n].is_discard]
        known = [time for n in shown if (time := times[n]) is not None]
        if not known:
            continue
        first = min(known) - round(usual * next(place for place, n in enumerate(shown) if times[n] is not None))
        move = 0 if end is None else end - first
        if move:
            times[start:stop] = [None if time is None else time + move for time in times[start:stop]]
        # Of MPEG program streams, the last frames often have no time.
        frames = len(shown) if len(known) < len(shown) else 0
        end = max(max(known) + round(usual), first + round(frames * usual)) + move
    return times


def _jumps(packets: Sequence[VideoPacket], usual: Fraction, time_base: Fraction, *, clocked: bool) -> Iterator[int]:
    """Yield the packets at which timestamps jump ahead or start again."""
    ahead = (LONGEST_STEP_OF_CLOCKS_S if clocked else LONGEST_STEP_S) / time_base
    back = STEP_BACK_OF_CLOCKS_S / time_base if clocked else STEP_BACK_FRAMES * usual
    decoded: int | None = None  # the last decode time
    latest: int | None = None  # the latest presentation time since the last jump
    for number, packet in enumerate(packets):
        if packet.is_discard:  # an edit list leaves it out, and it keeps its time before the edit
            continue
        time, shown = packet.dts, packet.pts
        jumps = time is not None and decoded is not None and not -back <= time - decoded <= ahead
        # FFmpeg derives decode times of Matroska in a way that may hide a new start.
        if not jumps and packet.is_keyframe and shown is not None and latest is not None:
            jumps = latest - shown > STEP_BACK_FRAMES * usual
        if jumps:
            yield number
            latest = None
        if time is not None:
            decoded = time
        if shown is not None and (latest is None or shown > latest):
            latest = shown


def in_order(times: Sequence[int | None], usual: Fraction) -> list[int]:
    """Return times of frames that are shown in the order given, from times that may be missing or out of order.

    Known times are sorted. If some are missing, those that come twice are unknown, too: FFmpeg may give the one time of
    a packet of an MPEG program stream to two frames. A constant rate is assumed if all others are near to it. Otherwise
    missing ones lie evenly between known ones.
    """
    if None not in times:
        return sorted(cast(Sequence[int], times))
    counts = Counter(times)
    known = [place for place, time in enumerate(times) if time is not None and counts[time] == 1]
    values = sorted(cast(int, times[place]) for place in known)
    start = values[0] - known[0] * usual if known else Fraction(0)
    steady = [round(start + place * usual) for place in range(len(times))]
    if all(abs(time - steady[place]) <= 2 * usual for place, time in zip(known, values, strict=True)):
        return steady
    spaced = steady[: known[0]]
    for (place, time), (next_place, next_time) in pairwise(zip(known, values, strict=True)):
        gap = next_place - place
        spaced += [time + (next_time - time) * step // gap for step in range(gap)]
    last = known[-1]
    return spaced + [round(values[-1] + (place - last) * usual) for place in range(last, len(times))]
