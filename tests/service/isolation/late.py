"""The fork server of ``hostile.py`` on a busy machine.

It notices late what processes say, and their ends first. Processes get their clip before they are ready.
"""

import io
import selectors
import time
from typing import BinaryIO

from service.isolation.forkserver import main
from service.video.decoder import DecodedClip, DecodeLimits, Image
from tests.service.isolation.hostile import decode

DELAY_S = 0.5
WARM_UP_S = 0.6


def decode_later(file: BinaryIO, limits: DecodeLimits, into: Image) -> DecodedClip:
    if isinstance(file, io.BytesIO):  # the warm-up clip
        time.sleep(WARM_UP_S)
    return decode(file, limits, into)


class LateSelector(selectors.DefaultSelector):
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        time.sleep(DELAY_S)
        return sorted(super().select(timeout), key=lambda event: event[0].data is not None)


if __name__ == "__main__":
    selectors.DefaultSelector = LateSelector  # type: ignore[misc]
    main(decode_later)
