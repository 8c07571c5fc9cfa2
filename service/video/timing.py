"""Puts the timestamps of a stream's packets on one timeline, as players do.

Recordings are joined, cameras lose their clocks, and the 33-bit clock of MPEG streams starts again every 26.5 hours. A
player that meets such a jump shows the next frame after the usual time. The limits are those of ffplay.
"""

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from fractions import Fraction
from itertools import accumulate, pairwise
from operator import sub
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
    hidden: Set[int],
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
        hidden: Packets that an edit list leaves out. They have the times that they would have without it.
        usual: Usual duration of a frame, in ticks.
        time_base: Length of a tick, in seconds.
        clocked: Whether the container's timestamps are readings of a clock that may jump (MPEG streams, Ogg).
        by_decode_times: Take decode times only.
    """
    times = [packet.pts for packet in packets]
    if by_decode_times or all(time is None for time in times):
        times = [packet.dts for packet in packets]
    decoded = {packet.dts for packet in packets}
    if len(times) > 1 and (len(set(times)) == 1 or (len(decoded) == 1 and None not in decoded)):  # they say nothing
        return [None] * len(times)
    shown = [number for number in range(len(packets)) if number not in hidden]
    ahead = (LONGEST_STEP_OF_CLOCKS_S if clocked else LONGEST_STEP_S) / time_base
    back = STEP_BACK_OF_CLOCKS_S / time_base if clocked else STEP_BACK_FRAMES * usual
    jumps = list(_jumps([packets[number] for number in shown], ahead, back, STEP_BACK_FRAMES * usual))
    if not jumps:
        return times
    starts = [0, *jumps, len(shown)]
    if not clocked and any(stop - start < STEP_BACK_FRAMES for start, stop in pairwise(starts[:-1])):
        return times  # no recording is so short: they are out of order
    move, end = 0, 0
    due: int | None = None  # when the next packet is to be decoded
    for start, stop in pairwise(starts):
        piece = shown[start:stop]
        known = [time for number in piece if (time := times[number]) is not None]
        if not known:
            continue
        opening = packets[piece[0]]
        decoded_at = _decode_time(opening, ahead)
        step, next_due = _pace([packets[number] for number in piece], usual, ahead)
        first = min(known) - round(step * next(place for place, n in enumerate(piece) if times[n] is not None))
        if due is not None and decoded_at is not None and not opening.is_keyframe:
            move += due - decoded_at  # within a group of pictures, some before may be shown after some behind the jump
        elif start:
            move = end - first
        # Of MPEG program streams, the last frames often have no time.
        packets_counted = len(piece) if len(known) < len(piece) else 0
        end = max(max(known) + round(usual), first + round(packets_counted * step)) + move
        due = next_due
        for number in range(piece[0], piece[-1] + 1):
            if (time := times[number]) is not None:
                times[number] = time + move
    return times


def _jumps(packets: Sequence[VideoPacket], ahead: Fraction, back: Fraction, reordered: Fraction) -> Iterator[int]:
    """Yield the packets at which timestamps jump ahead or start again.

    Args:
        packets: Packets in decode order.
        ahead: How far decode times may go ahead, in ticks.
        back: How far decode times may go back, in ticks.
        reordered: How far a keyframe's presentation time may lie before the latest one, in ticks.
    """
    all_decoded = [time for packet in packets if (time := packet.dts) is not None]
    all_shown = [time for packet in packets if (time := packet.pts) is not None]
    steps = list(map(sub, all_decoded[1:], all_decoded)) or [0]
    latest_shown = list(accumulate(all_shown, max))
    furthest_back = max(map(sub, latest_shown, all_shown), default=0)
    furthest_ahead = max(map(sub, all_shown[1:], latest_shown), default=0)
    if -back <= min(steps) and max(steps) <= ahead and furthest_back <= reordered and furthest_ahead <= ahead:
        return  # as in nearly every clip, and ten times as fast as looking at each
    decoded: int | None = None  # the last decode time
    latest: int | None = None  # the latest presentation time since the last jump
    for number, packet in enumerate(packets):
        time, shown = _decode_time(packet, ahead), packet.pts
        jumps = time is not None and decoded is not None and not -back <= time - decoded <= ahead
        if not jumps and shown is not None and latest is not None:
            is_ahead = shown - latest > ahead and number + 1 < len(packets)  # the last frame may come late
            jumps = is_ahead or (packet.is_keyframe and latest - shown > reordered)
        if jumps:
            yield number
            decoded = latest = None
        if time is not None:
            decoded = time
        if shown is not None and (latest is None or shown > latest):
            latest = shown


def _pace(packets: Sequence[VideoPacket], usual: Fraction, ahead: Fraction) -> tuple[Fraction, int | None]:
    """Return how far apart packets are decoded, in ticks, and when one more would be; ``None`` if that is unknown.

    Where the fields of frames have packets of their own, that is half as far as frames are.
    """
    known = [(place, time) for place, packet in enumerate(packets) if (time := _decode_time(packet, ahead)) is not None]
    if not known:
        return usual, None
    (first, start), (last, end) = known[0], known[-1]
    step = Fraction(end - start, last - first) if end > start else usual
    return step, end + round(step * (len(packets) - last))


def _decode_time(packet: VideoPacket, ahead: Fraction) -> int | None:
    """Return a packet's decode time, unless it lies behind a jump and FFmpeg derived its decode time from before."""
    if packet.dts is None or packet.pts is None or abs(packet.pts - packet.dts) <= ahead:
        return packet.dts
    return None


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
