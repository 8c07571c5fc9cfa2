"""Checks a structure against what FFmpeg's decoder outputs, in the ways in which a sparse decode uses it."""

import io
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b

import av
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from service.video.headers import Structure, VideoPacket, read_structure

Outputs = dict[int, bytes]
"""A digest of each frame, by the index of its packet."""


@contextmanager
def open_stream(clip: bytes) -> Iterator[tuple[list[VideoPacket], VideoStream]]:
    """Open a clip. Yields its packets, whose ``pts`` are their indices, and the stream with a fresh decoder."""
    with av.open(io.BytesIO(clip), "r") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        packets = [packet for packet in container.demux(stream) if packet.size]
        for number, packet in enumerate(packets):
            packet.pts = number
        yield packets, stream


def structure_of(clip: bytes) -> Structure | None:
    with open_stream(clip) as (packets, stream):
        return read_structure(packets, stream)


def assert_provable(clip: bytes, entries: int | None = None) -> Structure:
    """Assert that a clip has a structure, and that sparse decodes which follow it give the frames of a full decode."""
    structure = structure_of(clip)
    assert structure is not None
    if entries is not None:
        assert len(structure.entries) == entries
    assert_same_frames(clip, structure)
    return structure


def assert_same_frames(clip: bytes, structure: Structure) -> None:
    with open_stream(clip) as (packets, stream):
        assert 0 in structure.entries
        everything = list(_decode(stream.codec_context, packets, range(len(packets))))
        full = dict(everything)
        shown = {number: place for place, (number, _) in enumerate(everything)}
        assert len(everything) == len(full)
        discarded = {number for number, packet in enumerate(packets) if packet.is_discard}
        assert full.keys() == set(range(len(packets))) - structure.empty - discarded

    def check(decoded: Outputs, entry: int, wanted: Container[int] | None = None) -> None:
        for number, frame in full.items():
            if shown[number] >= shown.get(entry, 0) and (wanted is None or number in wanted):
                assert decoded.get(number) == frame, f"frame {number}, decoded from {entry}"

    starts = sorted(structure.entries)
    for entry in starts[:4] + starts[-4:]:
        with open_stream(clip) as (packets, stream):
            check(dict(_decode(stream.codec_context, packets, range(entry, len(packets)))), entry)
        with open_stream(clip) as (packets, stream):  # a decoder that has seen an earlier run
            context = stream.codec_context
            for _ in _decode(context, packets, range(starts[0], min(entry, starts[0] + 3))):
                pass
            context.flush_buffers()
            check(dict(_decode(context, packets, range(entry, len(packets)))), entry)
        if structure.skippable:
            for step in (2, 3, 7):
                with open_stream(clip) as (packets, stream):
                    wanted = range(entry, len(packets), step)
                    check(
                        dict(_decode(stream.codec_context, packets, range(entry, len(packets)), wanted)), entry, wanted
                    )


def _decode(
    context: VideoCodecContext,
    packets: Sequence[VideoPacket],
    numbers: Sequence[int],
    wanted: Container[int] | None = None,
) -> Iterator[tuple[int, bytes]]:
    """Yield the frames that a decoder outputs for packets; without ``wanted`` no frame is skipped."""
    for number in [*numbers, None]:
        if number is not None:
            context.skip_frame = "DEFAULT" if wanted is None or number in wanted else "NONREF"
        for frame in context.decode(None if number is None else packets[number]):
            assert frame.pts is not None
            yield frame.pts, _digest(frame)


def _digest(frame: VideoFrame) -> bytes:
    return blake2b(frame.to_ndarray().tobytes(), person=frame.format.name.encode()).digest()
