"""The packets of an MPEG transport stream (ISO/IEC 13818-1), where they say what FFmpeg does not pass on.

FFmpeg takes the scrambled packets of a pay-TV recording for damaged ones.
"""

from typing import BinaryIO

import numpy as np
import numpy.typing as npt

# Of 188 bytes; of AVCHD, with a timestamp before each; of broadcasts, with a checksum behind each.
PACKET_BYTES = (188, 192, 204)
SYNC = 0x47
SYNCS = 8  # so many in a row are no chance
LOOKED_AT = 2**20  # a recording is scrambled from its beginning or not at all


def scrambled_pids(file: BinaryIO) -> frozenset[int]:
    """The streams, by packet identifier, most of whose packets are scrambled; none where it is no transport stream."""
    place = file.tell()  # FFmpeg reads on from there
    file.seek(0)
    packets = _packets(np.frombuffer(file.read(LOOKED_AT), np.uint8))
    file.seek(place)
    pids = (packets[:, 1].astype(np.intp) & 0x1F) << 8 | packets[:, 2]
    scrambled = packets[:, 3] >> 6 != 0  # transport_scrambling_control
    mostly = 2 * np.bincount(pids, scrambled) > np.bincount(pids)
    return frozenset(np.flatnonzero(mostly).tolist())


def _packets(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The packets one below the other, as far as they are in step with the first; none where there are no eight."""
    for size in PACKET_BYTES:
        for start in np.flatnonzero(data[:size] == SYNC):
            rows = (len(data) - start) // size
            packets = data[start : start + rows * size].reshape(rows, size)
            if rows >= SYNCS and (packets[:SYNCS, 0] == SYNC).all():
                in_step: npt.NDArray[np.uint8] = packets[packets[:, 0] == SYNC]
                return in_step
    return np.empty((0, PACKET_BYTES[0]), np.uint8)
