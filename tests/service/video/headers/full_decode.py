"""The oracle of the headers' tests: what FFmpeg's decoder outputs when it decodes all packets of a clip in order."""

import io
from collections.abc import Collection, Container, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b

import av
import numpy as np
import numpy.typing as npt
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from service.video.headers import Structure, VideoPacket, read_structure
from service.video.packed import unpack

Shown = tuple[int, bytes]
"""A frame: the index of its packet, and a digest."""

TRIED = 4  # entries from which a clip is decoded


@contextmanager
def open_stream(clip: bytes) -> Iterator[tuple[Sequence[VideoPacket], VideoStream]]:
    """Open a clip. Yields its packets, unpacked, and the stream with a fresh decoder."""
    with av.open(io.BytesIO(clip), "r", metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        yield unpack([packet for packet in container.demux(stream) if packet.size], stream), stream


def structure_of(clip: bytes) -> Structure | None:
    with open_stream(clip) as (packets, stream):
        return read_structure(packets, stream)


def assert_provable(clip: bytes, entries: int | None = None) -> Structure:
    """Assert that a clip has a structure, with so many entries, and that all that it says is so."""
    structure = structure_of(clip)
    assert structure
    if entries is not None:
        assert len(structure.entries) == entries
    assert_same_frames(clip, structure)
    return structure


def assert_same_frames(clip: bytes, structure: Structure) -> None:
    """Assert that decoding from an entry gives the frames of a full decode, in the ways in which they are picked."""
    with open_stream(clip) as (packets, _):
        last = len(packets)
        discarded = {number for number, packet in enumerate(packets) if packet.is_discard}
    everything = _decode(clip, range(last))
    assert sorted(number for number, _ in everything) == sorted({*range(last)} - structure.empty - discarded)
    assert 0 in structure.entries
    first_group = range(min(structure.entries - {0}, default=last))
    for entry in sorted(structure.entries)[:: -max(1, len(structure.entries) // TRIED)]:
        expected = _from(entry, everything)
        for seen in [(), first_group]:
            assert _from(entry, _decode(clip, range(entry, last), seen=seen)) == expected, f"decoded from {entry}"
        for step in (2, 3, 7) if structure.skippable else ():
            wanted = {number for number in range(entry, last, step) if number not in structure.empty}
            decoded = _from(entry, _decode(clip, range(entry, last), wanted=wanted | structure.empty))
            assert _only(wanted, decoded) == _only(wanted, expected), f"every {step}th decoded from {entry}"


def _from(entry: int, frames: list[Shown]) -> list[Shown]:
    """The frames that are shown from an entry's own on."""
    return frames[[number for number, _ in frames].index(entry) :]


def _only(wanted: Container[int], frames: list[Shown]) -> list[Shown]:
    return [frame for frame in frames if frame[0] in wanted]


def _decode(
    clip: bytes, numbers: Sequence[int], *, seen: Sequence[int] = (), wanted: Collection[int] | None = None
) -> list[Shown]:
    """Decode packets.

    Args:
        clip: The clip.
        numbers: The packets' indices.
        seen: Packets that the decoder has decoded before, after which it was flushed.
        wanted: Packets whose frames may not be skipped (default: all).
    """
    with open_stream(clip) as (packets, stream):
        for number, packet in enumerate(packets):
            packet.pts = number
        context = stream.codec_context
        if seen:
            list(_frames(context, [*(packets[number] for number in seen), None]))
            context.flush_buffers()
        frames: list[Shown] = []
        for number in numbers:
            context.skip_frame = "DEFAULT" if wanted is None or number in wanted else "NONREF"
            frames += _frames(context, [packets[number]])
        return [*frames, *_frames(context, [None])]


def _frames(context: VideoCodecContext, packets: "Sequence[VideoPacket | None]") -> Iterator[Shown]:
    for packet in packets:
        for frame in context.decode(packet):
            assert frame.pts is not None
            yield frame.pts, _digest(frame)


def _digest(frame: VideoFrame) -> bytes:
    """Digest what the resizer sees of a frame: its size, its pixels and how they become colours."""
    digest = blake2b(repr((frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)).encode())
    sample = -(-frame.format.components[0].bits // 8)
    for plane in frame.planes:
        rows: npt.NDArray[np.uint8] = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        digest.update(rows[:, : plane.width * sample].tobytes())
    return digest.digest()
