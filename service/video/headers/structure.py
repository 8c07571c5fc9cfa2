"""What the headers of a stream's packets prove about decoding it sparsely."""

from dataclasses import dataclass
from typing import TypeAlias

from av.packet import Packet
from av.video.stream import VideoStream

VideoPacket: TypeAlias = "Packet[VideoStream]"


@dataclass(frozen=True, slots=True)
class Structure:
    """Which packets hold frames, and where decoding can start. Packets are named by their index in decode order.

    Of every packet that is not in ``empty`` exactly one frame is output, unless it is damaged.

    Attributes:
        entries: Packets at which decoding can start: a fresh decoder that is given these packets and all later ones
            outputs the same frames as one that is given the whole stream, but for frames that are shown before the
            entry's own. Always holds the first packet.
        empty: Packets from which no frame is output, such as second fields and alternate reference frames. A frame made
            of several packets has the presentation time of the first.
        skippable: Whether FFmpeg's decoder may leave out frames that no other frame refers to (``skip_frame``).
    """

    entries: frozenset[int]
    empty: frozenset[int] = frozenset()
    skippable: bool = False
