"""Converts HDR pictures (PQ and HLG, ITU-R BT.2100) to the colours of an SDR screen."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorPrimaries, ColorTrc

CODE_BITS = 12
REFERENCE_WHITE = 203.0  # cd/m², of graphics and of a white page in the picture (ITU-R BT.2408)
PEAK = 1000.0  # cd/m², of the screen that most HDR is made for, and that HLG's reference screen has
HLG_GAMMA = 1.2  # of the reference screen (BT.2100, table 5)
SDR_GAMMA = 2.4  # of an SDR screen (ITU-R BT.1886)
LUMINANCE = (0.2627, 0.6780, 0.0593)  # of BT.2020's primaries
# From BT.2020's primaries to those of BT.709 (ITU-R BT.2087).
TO_BT709 = ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187))
HDR_TRANSFERS = frozenset({ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67})

_ROLL_OFF_STEPS = 4096

_Floats = npt.NDArray[np.float32]


def tone_map(codes: npt.NDArray[np.uint16], transfer: int, primaries: int) -> npt.NDArray[np.uint8]:
    """Convert an HDR picture to SDR.

    Light up to about half of the reference white is kept; from there to the peak it is rolled off as ITU-R BT.2390 does
    it. The ratio of a pixel's red, green and blue is kept.

    Args:
        codes: uint16 ``(3, height, width)``, RGB, 12 bits.
        transfer: FFmpeg's number of the transfer characteristic, one of ``HDR_TRANSFERS``.
        primaries: FFmpeg's number of the primaries. Those that are not BT.709's are taken for BT.2020's.

    Returns:
        uint8 ``(3, height, width)``, RGB.
    """
    if transfer == ColorTrc.ARIB_STD_B67:
        light = _hlg_light().take(codes, mode="clip")
        light *= _weighted(light, LUMINANCE) ** np.float32(HLG_GAMMA - 1)
    else:
        light = _pq_light().take(codes, mode="clip")
    steps = np.sqrt(light.max(0)) * np.float32(_ROLL_OFF_STEPS)
    light *= _roll_off().take(steps.astype(np.intp), mode="clip")
    if primaries != ColorPrimaries.BT709:
        light = np.stack([_weighted(light, row) for row in TO_BT709])
    return _sdr_codes().take((light * np.float32(65535)).astype(np.intp), mode="clip")


def _weighted(planes: _Floats, weights: Sequence[float]) -> _Floats:
    """Return the weighted sum of three planes."""
    red, green, blue = map(np.float32, weights)
    total: _Floats = planes[0] * red + planes[1] * green + planes[2] * blue
    return total


@cache
def _pq_light() -> _Floats:
    """Return the light of each PQ code, where 1 is the peak."""
    return (_pq_to_light(np.linspace(0, 1, 1 << CODE_BITS)) / PEAK).astype(np.float32)


@cache
def _hlg_light() -> _Floats:
    """Return the light of the scene for each HLG code, from 0 to 1 (BT.2100, table 5)."""
    signal = np.linspace(0, 1, 1 << CODE_BITS)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)


@cache
def _roll_off() -> _Floats:
    """Return by what light is multiplied, for each step of its square root.

    The curve is the EETF of ITU-R BT.2390, 5.4.1, from a screen with this peak to one whose peak is the reference
    white, both with perfect black. Light of 1 is the peak before and the white after.
    """
    light = PEAK * np.maximum(np.arange(_ROLL_OFF_STEPS + 1) / _ROLL_OFF_STEPS, 1e-6) ** 2
    signal = _light_to_pq(light) / _light_to_pq(PEAK)
    white = _light_to_pq(REFERENCE_WHITE) / _light_to_pq(PEAK)
    knee = 1.5 * white - 0.5
    t = (signal - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * white
    shown = _pq_to_light(np.where(signal < knee, signal, spline) * _light_to_pq(PEAK))
    return (shown / REFERENCE_WHITE / (light / PEAK)).astype(np.float32)


@cache
def _sdr_codes() -> npt.NDArray[np.uint8]:
    """Return the 8-bit code of each of 65,536 steps of light, from black to white."""
    return (255 * np.linspace(0, 1, 1 << 16) ** (1 / SDR_GAMMA)).round().astype(np.uint8)


# PQ's constants (BT.2100, table 4).
_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def _pq_to_light(signal: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the light in cd/m² of PQ signals from 0 to 1."""
    power = signal ** (1 / _M2)
    light: npt.NDArray[np.float64] = 10_000 * (np.maximum(power - _C1, 0) / (_C2 - _C3 * power)) ** (1 / _M1)
    return light


def _light_to_pq(light: npt.NDArray[np.float64] | float) -> npt.NDArray[np.float64]:
    power = (np.asarray(light) / 10_000) ** _M1
    signal: npt.NDArray[np.float64] = ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2
    return signal
