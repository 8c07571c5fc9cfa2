"""The oracle of the headers' tests: what a decode of all packets in order outputs."""

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from service.video.headers import Structure, VideoPacket, read_structure
from service.video.packed import unpack

# A frame as the resizer sees it: its size, its pixels and how they become colours.
Shown = tuple[int, tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip's packets and what their headers prove. Each packet's ``pts`` is its index."""

    content: bytes
    packets: Sequence[VideoPacket]
    structure: Structure | None

    @classmethod
    def read(cls, content: bytes) -> "Clip":
        with _open(content) as stream:
            packets = unpack([packet for packet in _demux(stream) if packet.size], stream)
            structure = read_structure(packets, stream)
            for number, packet in enumerate(packets):
                packet.pts = number
            return cls(content, packets, structure)

    def decode(self, numbers: Iterable[int], seen: Iterable[int] = ()) -> list[Shown]:
        """Decode packets with a fresh decoder, or with one that has decoded others, ``seen``, and was flushed."""
        with _open(self.content) as stream:
            if seen := list(seen):
                list(_frames(stream.codec_context, [*(self.packets[number] for number in seen), None]))
                stream.codec_context.flush_buffers()
            return list(_frames(stream.codec_context, [*(self.packets[number] for number in numbers), None]))


def assert_proves_the_truth(clip: Clip, entries: int = 3) -> Structure:
    """Assert that a clip has a structure, and that all that it says is so. Of the entries, some are tried."""
    assert clip.structure
    structure = clip.structure
    last = len(clip.packets)
    everything = clip.decode(range(last))
    assert sorted(number for number, _ in everything) == sorted({*range(last)} - structure.empty)
    assert 0 in structure.entries
    for entry in sorted(structure.entries)[:: -max(1, len(structure.entries) // entries)]:
        expected = _from(entry, everything)
        for seen in [(), range(min(structure.entries - {0}, default=last))]:  # fresh; after the first group
            assert _from(entry, clip.decode(range(entry, last), seen)) == expected
    return structure


def _from(entry: int, frames: list[Shown]) -> list[Shown]:
    """The frames that are shown from an entry's own on."""
    return frames[[number for number, _ in frames].index(entry) :]


@contextmanager
def _open(content: bytes) -> Iterator[VideoStream]:
    with av.open(io.BytesIO(content), metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        yield stream


def _demux(stream: VideoStream) -> Iterator[VideoPacket]:
    return cast(InputContainer, stream.container).demux(stream)


def _frames(context: VideoCodecContext, packets: "Iterable[VideoPacket | None]") -> Iterator[Shown]:
    for packet in packets:
        try:
            for frame in context.decode(packet):
                yield cast(int, frame.pts), _look(frame)
        except av.error.FFmpegError:
            continue


def _look(frame: VideoFrame) -> tuple[object, ...]:
    sample = -(-frame.format.components[0].bits // 8)
    pixels = []
    for plane in frame.planes:
        rows: npt.NDArray[np.uint8] = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        pixels.append(rows[:, : plane.width * sample].tobytes())
    return frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, *pixels
