"""Motion JPEG: pictures stand alone (ITU-T T.81), but may use tables that only earlier ones define."""

from collections.abc import Iterator, Sequence

from service.video.headers.structure import Structure, VideoPacket

START, SCAN = b"\xff\xd8", 0xDA
HUFFMAN_TABLES, QUANTISER_TABLES = 0xC4, 0xDB
MAX_SEGMENTS, MAX_TABLES = 100, 8  # of a picture, and of a segment
# APP0, APP1, APP14 and COM: FFmpeg's decoder keeps what it learns from them. It doubles the height of a frame that is
# lower than the first (SOF0 to SOF2), and takes it for a field.
KEPT = {0xE0, 0xE1, 0xEE, 0xFE, 0xC0, 0xC1, 0xC2}


def read_mjpeg(packets: Sequence[VideoPacket], extradata: bytes) -> Structure | None:
    """Read the segments before the first scan of each packet (B.2.3)."""
    tables: list[frozenset[int]] = []
    first: list[tuple[int, bytes]] | None = None
    for packet in packets:
        defined: set[int] = set()
        kept: list[tuple[int, bytes]] = []
        for marker, content in _segments(memoryview(packet)):
            if marker in KEPT:
                kept.append((marker, content))
            elif marker in {HUFFMAN_TABLES, QUANTISER_TABLES}:
                defined.update(_tables(marker, content))
        first = first or kept
        if kept != first:
            return None
        tables.append(frozenset(defined))
    needed = frozenset().union(*tables)
    entries = frozenset(number for number, defined in enumerate(tables) if defined == needed)
    return Structure(entries) if 0 in entries else None


def _segments(data: memoryview) -> Iterator[tuple[int, bytes]]:
    """Yield the marker and the content of each segment before the first scan."""
    if data[:2] != START:
        return
    start = 2
    for _ in range(MAX_SEGMENTS):
        if start + 4 > len(data) or data[start] != 0xFF or data[start + 1] == SCAN:
            return
        size = data[start + 2] << 8 | data[start + 3]
        yield data[start + 1], bytes(data[start + 4 : start + 2 + size])
        start += 2 + max(size, 2)


def _tables(marker: int, content: bytes) -> Iterator[int]:
    """Yield a number for each table that a segment defines."""
    start = 0
    for _ in range(MAX_TABLES):
        if start >= len(content):
            return
        head = content[start]
        yield marker << 8 | head & (0x0F if marker == QUANTISER_TABLES else 0x1F)
        if marker == QUANTISER_TABLES:
            start += 1 + (128 if head >> 4 else 64)
        else:
            start += 17 + sum(content[start + 1 : start + 17])
