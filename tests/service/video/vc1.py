"""Clips of Windows Media Video 9 and VC-1 (SMPTE 421M), which FFmpeg does not encode, written bit by bit.

They are of 64×48 and hold 15 grey pictures, each lighter than the last, then the same again. The pictures are
intra-coded: the first luma block differs from what is predicted for it, and no other block does.
"""

from tests.service.video.clips import encode, numbered, with_content, with_stream_type

MACROBLOCKS = 12
# Codes of a difference of 0, 1, 2, … for luma, and of 0 for chroma.
LUMA = ("1", "01", "0001", "00001", "00101", "00111", "001000", "001100")
CHROMA = "00"
# The sequence header of the simple profile: no loop filter, and no tool that needs more bits in a picture.
SIMPLE_HEADER = bytes([0, 0b00000001, 0b10000000, 0b00000001])
# Sequence header and entry point of the advanced profile. The sizes are halved, and one less.
ADVANCED_HEADER = b"\0\0\1\x0f" + int(f"1100001{0:09b}{31:012b}{23:012b}{0:08b}", 2).to_bytes(6) + b"\0\0\1\x0e\x44\0"
FRAME_START = b"\0\0\1\x0d"


def wmv3_clip(frames: int, container: str) -> bytes:
    """A clip of Windows Media Video 9 (simple profile) in AVI or ASF."""
    header = "00" + "0" + 7 * "0" + "11111" + "000"  # type I, the coarsest quantizer, the first tables
    clip = encode(
        map(numbered, range(frames)),
        codec="wmv2",
        container=container,
        change=lambda number, packet: with_content(packet, _picture(number, header)),
    )
    format_end = clip.index(b"\x18\0WMV2") + 26  # of the BITMAPINFOHEADER, from its number of bits
    return (clip[:format_end] + SIMPLE_HEADER + clip[format_end + 4 :]).replace(b"WMV2", b"WMV3")


def vc1_clip(frames: int) -> bytes:
    """A clip of the advanced profile in MPEG-TS."""
    header = "110" + "0" + "11111" + "00000" + "000"  # as above, and the kind of rounding and the prediction's bitplane
    clip = encode(
        map(numbered, range(frames)),
        codec="mpeg2video",
        container="mpegts",
        change=lambda number, packet: with_content(packet, ADVANCED_HEADER + FRAME_START + _picture(number, header)),
    )
    return with_stream_type(clip, 0xEA)


def _picture(number: int, header: str) -> bytes:
    step = number % 15 - 7
    first = LUMA[abs(step)] + (str(int(step < 0)) if step else "")
    blocks = (first, *["1"] * (MACROBLOCKS - 1))
    # Each macroblock has no coefficients, no prediction of them, and six blocks.
    bits = header + "".join("10" + luma + 3 * LUMA[0] + 2 * CHROMA for luma in blocks) + "1"
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8)
