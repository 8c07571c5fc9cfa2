"""VP9: a key frame resets all that later frames depend on. A packet may hold hidden frames, alone or beside others.

The clauses are those of "VP9 Bitstream & Decoding Process Specification".
"""

from collections.abc import Sequence

from service.video.headers.bits import Bits
from service.video.headers.structure import Structure, VideoPacket

FRAME_MARKER = 2
RGB = 7  # color_space


def read_vp9(packets: Sequence[VideoPacket], extradata: bytes) -> Structure | None:
    """Read the uncompressed header of each frame (6.2)."""
    entries, empty = set(), set()
    for number, packet in enumerate(packets):
        shown = 0
        for place, frame in enumerate(_frames(memoryview(packet))):
            flags = frame[0]
            if flags >> 6 != FRAME_MARKER:
                return None
            if flags & 0x30 == 0x30:  # profile 3 has a reserved bit here
                flags = flags << 1 | (frame[1] >> 7 if len(frame) > 1 else 0)
            if flags & 0x08:  # show_existing_frame
                shown += 1
                continue
            shown += flags >> 1 & 1  # show_frame
            if not place and not flags & 0x04:  # frame_type
                if not _resets_segments(Bits(frame[:64])):
                    return None
                entries.add(number)
        if shown > 1:
            return None
        if not shown:
            empty.add(number)
    return Structure(frozenset(entries - empty), frozenset(empty)) if 0 in entries - empty else None


def _frames(data: memoryview) -> list[memoryview]:
    """Return the frames of a packet: more than one if it ends with the index of a superframe (annex B)."""
    marker = data[-1]
    count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index = len(data) - 2 - count * width
    if marker >> 5 != 0b110 or index < 0 or data[index] != marker:
        return [data]
    frames, start = [], 0
    for place in range(index + 1, index + 1 + count * width, width):
        end = start + int.from_bytes(data[place : place + width], "little")
        if start < end <= index:
            frames.append(data[start:end])
        start = end
    return frames


def _resets_segments(header: Bits) -> bool:
    """Return whether a key frame's segments (7.2.10), if it has any, depend on no frame before it."""
    header.skip(2)
    profile = header.read(1) | header.read(1) << 1
    header.skip(profile == 3)
    header.skip(3)  # show_existing_frame, frame_type, show_frame
    error_resilient_mode = header.read(1)
    header.skip(24)  # frame_sync_code
    header.skip(profile >= 2)  # ten_or_twelve_bit
    if header.read(3) != RGB:
        header.skip(1)  # color_range
        header.skip(3 * (profile & 1))  # subsampling_x, subsampling_y, reserved_zero
    else:
        header.skip(profile & 1)
    header.skip(32)  # the size
    header.skip(32 * header.read(1))  # render_size
    header.skip(2 * (not error_resilient_mode))  # refresh_frame_context, frame_parallel_decoding_mode
    header.skip(2 + 6 + 3)  # frame_context_idx, loop_filter_level, loop_filter_sharpness
    if header.read(1) and header.read(1):  # loop_filter_delta_enabled, loop_filter_delta_update
        for _ in range(6):
            header.skip(7 * header.read(1))
    header.skip(8)  # base_q_idx
    for _ in range(3):
        header.skip(5 * header.read(1))
    if not header.read(1):  # segmentation_enabled
        return True
    if not header.read(1):  # segmentation_update_map
        return False
    for _ in range(7):
        header.skip(8 * header.read(1))
    return not header.read(1) and bool(header.read(1))  # segmentation_temporal_update, segmentation_update_data
