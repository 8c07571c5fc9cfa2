"""AV1: a shown key frame resets all that later frames depend on, if its packet has the sequence header.

A packet may hold hidden frames beside the one that is shown. The clauses are those of "AV1 Bitstream & Decoding Process
Specification".
"""

from collections.abc import Iterator, Sequence

from service.video.headers.bits import Bits
from service.video.headers.structure import Structure, VideoPacket

SEQUENCE_HEADER, FRAME_HEADER, FRAME = 1, 3, 6  # obu_type
SHOWN_KEY_FRAME = 0b0001  # show_existing_frame, two bits of frame_type, show_frame
MAX_UNITS = 100  # of a packet


def read_av1(packets: Sequence[VideoPacket], extradata: bytes) -> Structure | None:
    """Read the first bits of each frame's header (5.9.2)."""
    entries, empty = set(), set()
    sequence: bytes | None = None
    layers = 0
    for number, packet in enumerate(packets):
        frames, shown, starts = 0, 0, False
        for place, (kind, extension, content) in enumerate(_units(memoryview(packet))):
            if place >= MAX_UNITS or (extension is not None and not _is_in(layers, extension)):
                return None
            if kind == SEQUENCE_HEADER:
                starts = True
                header = bytes(content)
                if header != sequence:
                    sequence = header
                    if (usual := _layers(Bits(sequence[:16]))) is None:
                        return None
                    layers = usual
            elif kind in {FRAME_HEADER, FRAME} and content:
                shown += content[0] >> 7 or content[0] >> 4 & 1  # show_existing_frame or show_frame
                if content[0] >> 4 == SHOWN_KEY_FRAME and starts and not frames:
                    entries.add(number)
                frames += 1
        if shown > 1:
            return None
        if not shown:
            empty.add(number)
    return Structure(frozenset(entries), frozenset(empty)) if 0 in entries else None


def _units(data: memoryview) -> Iterator[tuple[int, int | None, memoryview]]:
    """Yield the type, the extension of the header and the content of each open bitstream unit (5.3)."""
    start = 0
    while start < len(data):
        header, extension = data[start], None
        start += 1
        if header & 4:  # obu_extension_flag
            extension = data[start] if start < len(data) else 0
            start += 1
        size = len(data) - start
        if header & 2:  # obu_has_size_field
            size = 0
            for place, byte in enumerate(data[start : start + 8]):
                size |= (byte & 0x7F) << 7 * place
                if byte < 0x80:
                    start += place + 1
                    break
        yield header >> 3 & 15, extension, data[start : start + size]
        start += size


def _layers(header: Bits) -> int | None:
    """Return ``operating_point_idc`` of a sequence header (5.5.1): the layers that dav1d decodes, or 0 for all.

    ``None`` for headers of a short form, with timing, and with several spatial layers, of which dav1d outputs one.
    """
    header.skip(3 + 1)  # seq_profile, still_picture
    if header.read(1) or header.read(1):  # reduced_still_picture_header, timing_info_present_flag
        return None
    header.skip(1 + 5)  # initial_display_delay_present_flag, operating_points_cnt_minus_1
    layers = header.read(12)
    return layers if layers >> 8 in {0, 1} else None


def _is_in(layers: int, extension: int) -> bool:
    """Return whether an extension's ``temporal_id`` and ``spatial_id`` are among the layers that are decoded."""
    return not layers or bool(layers >> (extension >> 5) & layers >> 8 + (extension >> 3 & 3) & 1)
