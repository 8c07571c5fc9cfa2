"""Reads the packet headers of an MPEG transport stream (ISO/IEC 13818-1) for facts that FFmpeg does not report.

FFmpeg treats the scrambled packets of a pay-TV recording as damaged ones.
"""

from typing import BinaryIO

import numpy as np
import numpy.typing as npt

# Plain packets; AVCHD's, with a timestamp before each; broadcasts', with a checksum after each.
PACKET_BYTES = (188, 192, 204)
SYNC_BYTE = 0x47
MIN_PACKETS = 8  # sync bytes in a row that are not a coincidence; in a file with fewer packets, all of them
FEWEST_PACKETS = 3
STRAY_BYTES = 2**16  # FFmpeg looks as far for the first packet
PROBE_BYTES = 2**20  # a recording is scrambled from its beginning or not at all


def is_transport_stream(data: bytes) -> bool:
    """Return whether a file that begins with ``data`` is a transport stream, perhaps after a few stray bytes."""
    return len(_packets(np.frombuffer(data, np.uint8))) > 0


def scrambled_pids(file: BinaryIO) -> frozenset[int]:
    """Return the packet identifiers (PIDs) of the streams most of whose packets are scrambled.

    The result is empty if the file is not a transport stream.
    """
    file.seek(0)
    packets = _packets(np.frombuffer(file.read(PROBE_BYTES), np.uint8))
    pids = (packets[:, 1].astype(np.intp) & 0x1F) << 8 | packets[:, 2]
    scrambled = packets[:, 3] >> 6 != 0  # transport_scrambling_control
    mostly = 2 * np.bincount(pids, scrambled) > np.bincount(pids)
    return frozenset(np.flatnonzero(mostly).tolist())


def _packets(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Split ``data`` into packets.

    Returns:
        uint8 ``(packets, packet size)``: the packets in step with the first eight in a row that begin with a sync byte,
        as far as they begin with one, too; empty if there are no eight.
    """
    # The reserved value 0 of adaptation_field_control tells packets apart from a run of equal bytes.
    begins = (data[:-3] == SYNC_BYTE) & (data[3:] & 0x30 != 0)
    for size in PACKET_BYTES:
        in_a_row = min(MIN_PACKETS, len(data) // size)
        places = min(len(begins) - (in_a_row - 1) * size, STRAY_BYTES)
        if in_a_row < FEWEST_PACKETS or places <= 0:
            continue
        steady = begins[:places].copy()
        for start in range(size, in_a_row * size, size):
            steady &= begins[start : start + places]
        start = int(steady.argmax())
        if steady[start]:
            start %= size
            rows = (len(data) - start) // size
            packets = data[start : start + rows * size].reshape(rows, size)
            in_step: npt.NDArray[np.uint8] = packets[packets[:, 0] == SYNC_BYTE]
            return in_step
    return np.empty((0, PACKET_BYTES[0]), np.uint8)
