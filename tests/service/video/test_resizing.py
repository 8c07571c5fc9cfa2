"""How colours are converted: whatever their tags say, and HDR to SDR."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from service.video.decoder import decode_clip
from service.video.resizing import Resizer
from tests.service.video.clips import encode

Image = npt.NDArray[np.uint8]

SD, HD = (64, 48), (1280, 16)
PATCHES = np.array([[[200, 30, 30], [30, 200, 30]], [[30, 30, 200], [200, 200, 30]]], np.uint8)
# Of every kind that decoders put out: depths, subsampling, layouts, grey, RGB and alpha.
FORMATS = """
    yuv420p yuvj420p yuv422p yuv444p yuv411p yuva420p yuv420p10le yuv422p10le yuv444p12le p010le nv12 yuyv422 gray
    gray10le gbrp gbrp10le rgb24 bgra rgb555le
"""


def resized(frame: VideoFrame) -> Image:
    image = np.empty((224, 224, 3), np.uint8)
    Resizer().resize(frame, image)
    return image


def patches(
    size: tuple[int, int] = SD, pixel_format: str = "yuv444p", colorspace: Colorspace = Colorspace.ITU601
) -> VideoFrame:
    """A frame of four patches, converted to YUV by a matrix and tagged with none."""
    width, height = size
    picture = np.repeat(np.repeat(PATCHES, height // 2, 0), width // 2, 1)
    frame = VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixel_format, dst_colorspace=colorspace)
    frame.colorspace, frame.color_primaries, frame.color_trc = 2, 2, 2
    return frame


def colours(image: Image) -> npt.NDArray[np.int64]:
    return image[56::112, 56::112].astype(np.int64)


class TestTags:
    @pytest.mark.parametrize("pixel_format", FORMATS.split())
    def test_no_value_of_a_tag_makes_a_frame_unreadable(self, pixel_format: str) -> None:
        frame = VideoFrame.from_ndarray(np.full((8, 8, 3), 90, np.uint8), format="rgb24").reformat(format=pixel_format)
        image, resizer = np.empty((224, 224, 3), np.uint8), Resizer()
        for tag in ("colorspace", "color_range", "color_trc", "color_primaries"):
            usual = getattr(frame, tag)
            for value in [*range(24), 127, 128, 255]:  # the known ones, the reserved ones behind them, and the last
                setattr(frame, tag, value)
                resizer.resize(frame, image)
                assert np.ptp(image, (0, 1)).max() <= 8, f"{tag} {value}"
            setattr(frame, tag, usual)

    @pytest.mark.parametrize("matrix", [2, 0, 3, 8, 10, 11, 12, 13, 14, 15, 16, 17, 255])
    @pytest.mark.parametrize(
        ("size", "colorspace"),
        [
            ((320, 240), Colorspace.ITU601),
            ((720, 576), Colorspace.ITU601),
            ((1278, 576), Colorspace.ITU601),
            ((1280, 16), Colorspace.ITU709),
            ((16, 578), Colorspace.ITU709),
        ],
    )
    def test_a_missing_or_unknown_matrix_is_that_of_the_size(
        self, size: tuple[int, int], colorspace: Colorspace, matrix: int
    ) -> None:
        frame = patches(size, colorspace=colorspace)
        frame.colorspace = matrix

        np.testing.assert_allclose(colours(resized(frame)), PATCHES, atol=3)

    @pytest.mark.parametrize("size", [SD, HD])
    @pytest.mark.parametrize("matrix", [2, 14])
    def test_a_missing_or_unknown_matrix_is_that_of_wide_primaries(self, matrix: int, size: tuple[int, int]) -> None:
        frame = patches(size, "yuv444p10le", Colorspace.BT2020)
        frame.colorspace, frame.color_primaries = matrix, ColorPrimaries.BT2020

        np.testing.assert_allclose(colours(resized(frame)), PATCHES, atol=3)

    @pytest.mark.parametrize("size", [SD, HD])
    @pytest.mark.parametrize(
        ("matrix", "colorspace"),
        [
            (1, Colorspace.ITU709),
            (4, Colorspace.FCC),
            (5, Colorspace.ITU601),
            (6, Colorspace.ITU601),
            (7, Colorspace.SMPTE240M),
            (9, Colorspace.BT2020),
        ],
    )
    def test_a_known_matrix_is_used_whatever_the_size(
        self, matrix: int, colorspace: Colorspace, size: tuple[int, int]
    ) -> None:
        frame = patches(size, colorspace=colorspace)
        frame.colorspace = matrix

        np.testing.assert_allclose(colours(resized(frame)), PATCHES, atol=3)

    def test_an_unknown_range_counts_as_none(self) -> None:
        frame, tagged = patches(), patches()
        tagged.color_range = 77

        np.testing.assert_array_equal(resized(tagged), resized(frame))
        tagged.color_range = ColorRange.JPEG
        assert (colours(resized(tagged)) != colours(resized(frame))).any()

    @pytest.mark.parametrize("matrix", ["ICtCp", "YCgCo", "GBR", "bt2020c", "smpte2085", "chroma-derived-nc"])
    def test_a_clip_with_an_unknown_matrix_is_decoded_like_one_without(self, matrix: str) -> None:
        pictures = [np.repeat(np.repeat(PATCHES, 24, 0), 32, 1)] * 3
        options = {"x264-params": f"bframes=0:colormatrix={matrix}"}

        tagged = decode_clip(encode(pictures, options=options))

        np.testing.assert_array_equal(tagged.frames, decode_clip(encode(pictures)).frames)


def hdr_grey(signal: float, transfer: ColorTrc) -> list[int]:
    """Return the colour that a grey picture with this signal becomes, in 8 bits."""
    codes = np.full((8, 8, 3), round(signal * 65535), np.uint16)
    frame = VideoFrame.from_ndarray(codes, format="rgb48le").reformat(
        format="yuv444p12le", dst_colorspace=Colorspace.BT2020
    )
    frame.colorspace, frame.color_trc, frame.color_primaries = 9, transfer, ColorPrimaries.BT2020
    return list(resized(frame)[112, 112].tolist())


class TestHdr:
    # ITU-R BT.2408, table 1: light and signals of objects in the picture. What is darker than about half of the
    # reference white of 203 cd/m² keeps its light, and on an SDR screen light is the signal to the power of 2.4.
    @pytest.mark.parametrize(("light", "pq", "hlg"), [(26, 0.38, 0.38), (203, 0.58, 0.75)])
    def test_levels_of_bt_2408_have_the_same_sdr_signal_in_pq_and_hlg(self, light: int, pq: float, hlg: float) -> None:
        signals = [hdr_grey(pq, ColorTrc.SMPTE2084)[0], hdr_grey(hlg, ColorTrc.ARIB_STD_B67)[0]]

        usual = 255 * (light / 203) ** (1 / 2.4)
        assert signals == pytest.approx([usual if light < 100 else 230] * 2, abs=3)

    @pytest.mark.parametrize("transfer", [ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67])
    def test_brighter_light_becomes_brighter_up_to_white(self, transfer: ColorTrc) -> None:
        greys = [hdr_grey(signal, transfer) for signal in np.linspace(0, 1, 21)]

        assert all(max(grey) - min(grey) <= 1 for grey in greys)
        levels = [grey[0] for grey in greys]
        assert levels == sorted(levels)
        assert (levels[0], levels[-1]) == (0, 255)
        assert len(set(levels)) > 14

    def test_a_scene_in_pq_or_hlg_is_near_the_scene_in_sdr(self, tmp_path: Path) -> None:
        sdr = _by_ffmpeg(tmp_path / "sdr.mp4", "bt709", "bt709", "bt709", "format=yuv444p10")
        for transfer, tolerance in (("smpte2084", 2), ("arib-std-b67", 12)):
            # FFmpeg's filter applies HLG's gamma to each colour instead of the luminance, so that colours differ.
            wide = f"zscale=min=709:tin=709:pin=709:t={transfer}:p=2020:m=2020_ncl:npl=203,format=yuv444p10"
            hdr = _by_ffmpeg(tmp_path / "hdr.mp4", "bt2020nc", "bt2020", transfer, wide)

            greys, tints = np.abs(hdr - sdr)[SCENE_AT][0], np.abs(hdr - sdr)[SCENE_AT][1:]
            assert greys[:5].max() <= 2, transfer
            assert tints.mean() < tolerance, transfer


SCENE_AT = np.ix_(224 * np.arange(1, 12, 2) // 12, 224 * np.arange(1, 12, 2) // 12)


def _by_ffmpeg(path: Path, matrix: str, primaries: str, transfer: str, filters: str) -> npt.NDArray[np.int64]:
    """Let the ffmpeg command encode a scene of 6×6 patches, the first row grey; return the frame that is sampled."""
    program = shutil.which("ffmpeg")
    if program is None:
        pytest.skip("needs the ffmpeg command as the oracle")
    scene = np.random.default_rng(0).integers(0, 200, (6, 6, 3), np.uint8)
    scene[0] = 40 * np.arange(6)[:, None]
    source = np.kron(scene, np.ones((40, 40, 1), np.uint8)).tobytes() * 3
    command = [program, "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "240x240", "-i", "-"]
    to_709 = "format=gbrp,zscale=min=gbr:tin=709:pin=709:rin=full:m=709:t=709:p=709:r=limited,format=yuv444p10"
    command += ["-vf", f"{to_709},{filters}", "-c:v", "libx265", "-qp", "4", "-x265-params", "log-level=none"]
    command += ["-colorspace", matrix, "-color_primaries", primaries, "-color_trc", transfer, str(path)]
    subprocess.run(command, check=True, input=source, capture_output=True)
    frame: npt.NDArray[np.int64] = decode_clip(path).frames[20].astype(np.int64)
    return frame


class TestInterlaced:
    @pytest.mark.parametrize(
        ("pix_fmt", "container"), [("yuv420p", "mp4"), ("yuv422p10le", "matroska"), ("gray", "mp4")]
    )
    def test_a_frame_that_is_flagged_as_interlaced_is_scaled_as_a_whole(self, pix_fmt: str, container: str) -> None:
        """Whatever the flag says: both clips hold the same pictures, without loss."""
        noise = np.random.default_rng(0).integers(0, 256, (3, 288, 352, 1), np.uint8)
        pictures = list(np.repeat(noise, 3, axis=-1))  # grey: where colours lie between the pixels is not copied
        flagged, plain = (
            encode(pictures, container=container, pix_fmt=pix_fmt, options={"qp": "0", "x264-params": params})
            for params in ("interlaced=1", "interlaced=0")
        )

        np.testing.assert_array_equal(decode_clip(flagged).frames, decode_clip(plain).frames)
