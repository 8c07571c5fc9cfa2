"""Reads the packet headers of an MPEG transport stream (ISO/IEC 13818-1) for facts that FFmpeg does not report.

FFmpeg treats the scrambled packets of a pay-TV recording as damaged ones.
"""

from typing import BinaryIO

import numpy as np
import numpy.typing as npt

# Plain packets; AVCHD's, with a timestamp before each; broadcasts', with a checksum after each.
PACKET_BYTES = (188, 192, 204)
SYNC_BYTE = 0x47
MIN_PACKETS = 8  # sync bytes in a row that are not a coincidence
PROBE_BYTES = 2**20  # a recording is scrambled from its beginning or not at all


def scrambled_pids(file: BinaryIO) -> frozenset[int]:
    """Return the packet identifiers (PIDs) of the streams most of whose packets are scrambled.

    Leaves the file's position where it was, because FFmpeg goes on reading from there. The result is empty if the file
    is not a transport stream.
    """
    position = file.tell()
    file.seek(0)
    packets = _packets(np.frombuffer(file.read(PROBE_BYTES), np.uint8))
    file.seek(position)
    pids = (packets[:, 1].astype(np.intp) & 0x1F) << 8 | packets[:, 2]
    scrambled = packets[:, 3] >> 6 != 0  # transport_scrambling_control
    mostly = 2 * np.bincount(pids, scrambled) > np.bincount(pids)
    return frozenset(np.flatnonzero(mostly).tolist())


def _packets(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Split ``data`` into packets.

    Returns:
        uint8 ``(packets, packet size)``: the packets in step with the first that begin with a sync byte; empty if
        there are no eight in a row.
    """
    for size in PACKET_BYTES:
        for start in np.flatnonzero(data[:size] == SYNC_BYTE):
            rows = (len(data) - start) // size
            packets = data[start : start + rows * size].reshape(rows, size)
            if rows >= MIN_PACKETS and (packets[:MIN_PACKETS, 0] == SYNC_BYTE).all():
                in_step: npt.NDArray[np.uint8] = packets[packets[:, 0] == SYNC_BYTE]
                return in_step
    return np.empty((0, PACKET_BYTES[0]), np.uint8)
