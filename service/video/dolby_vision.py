"""Reads configurations of Dolby Vision: whether a stream can be shown by a decoder that does not know Dolby Vision.

Such a stream has a plain base layer. Without it, the colours are in a space of Dolby's own, and come out purple and
green. See "Dolby Vision Streams Within the ISO Base Media File Format", 3.1 and 3.2.
"""

import re
from collections.abc import Sequence
from itertools import islice

# The box of an MP4; the elements of a Matroska file, BlockAddIDType and BlockAddIDExtraData; the descriptors of an MPEG
# transport stream. Each with the first five bytes of the configuration: two of the version, two of profile and level,
# one of the base layer's compatibility.
BOX = re.compile(rb"dv[cvw]C(.{5})", re.DOTALL)
_SIZE = rb"(?:[\x80-\xff]|[\x40-\x7f].|[\x10-\x1f].{3}|\x01.{7})"
ELEMENTS = re.compile(rb"\x41\xe7" + _SIZE + rb"dv[cvw]C.{0,64}?\x41\xed" + _SIZE + rb"(.{5})", re.DOTALL)
DESCRIPTORS = re.compile(rb"\x05\x04DOVI.{0,64}?\xb0[\x05-\x10](.{5})", re.DOTALL)
# Sample entries whose streams have no plain base layer, unless a configuration says otherwise: the type, then six
# reserved bytes that are zero.
SAMPLE_ENTRY = re.compile(rb"(?:dvh1|dvhe|dav1)\0{6}")
OWN_COLOURS = 5  # a profile that never has a plain base layer
PLAIN = frozenset({4, 7, 9})  # profiles that always have one
MAX_CONFIGURATIONS = 100  # of a track; most have one


def is_plain_track(track: bytes) -> bool:
    """Return whether a decoder that does not know Dolby Vision can show a track of an MP4 (the content of ``trak``)."""
    configurations = [box[1] for box in islice(BOX.finditer(track), MAX_CONFIGURATIONS)]
    return _are_plain(configurations) if configurations else not SAMPLE_ENTRY.search(track)


def are_plain_tracks(head: bytes) -> bool:
    """Return whether such a decoder can show every stream of a Matroska file or MPEG-TS that begins with ``head``."""
    return _are_plain(ELEMENTS.findall(head) + DESCRIPTORS.findall(head))


def _are_plain(configurations: Sequence[bytes]) -> bool:
    streams = [(configuration[2] >> 1, configuration[4] >> 4) for configuration in configurations]
    return all(profile in PLAIN or (profile != OWN_COLOURS and compatible) for profile, compatible in streams)
