"""Drives the page in Chromium as a user would."""

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from model_export.rendering.figure import ENCODER_OPTIONS
from tests.processes import until
from tests.service.video.clips import Image, encode

PATIENCE_MS = 120_000
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP rebound.example 127.0.0.1",
)  # fmt: skip
# Chromium logs this for every answer from 400 on and for every failed request, even if the page handles it.
REPORTED = "Failed to load resource: "

DROP = """([name, type, data]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, {type}));
    return transfer;
}"""
# The mean brightness of each cell of a 7×7 grid over a picture.
CELLS = """(source) => {
    const canvas = new OffscreenCanvas(140, 140);
    const context = canvas.getContext("2d");
    context.drawImage(source, 0, 0, 140, 140);
    const {data} = context.getImageData(0, 0, 140, 140);
    const cells = Array(49).fill(0);
    for (let at = 0; at < 140 * 140; at++) {
        const cell = 7 * Math.floor(at / 140 / 20) + Math.floor((at % 140) / 20);
        const alpha = data[4 * at + 3] / 255;
        cells[cell] += (0.21 * data[4 * at] + 0.72 * data[4 * at + 1] + 0.07 * data[4 * at + 2]) * alpha / 400;
    }
    return cells;
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium with an empty profile; skip the test if it is not installed."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Visitor:
    """A user with the page open.

    Attributes:
        page: The page.
        url: Its address.
        logged_errors: Errors and warnings that the browser logged.
        asked: Addresses that the browser requested.
    """

    page: Page
    url: str
    logged_errors: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.logged_errors.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def arrive(self) -> None:
        """Open the page."""
        self.page.goto(self.url)

    def drop(self, clip: bytes, name: str = "clip.mp4", media_type: str = "video/mp4") -> None:
        """Drop a file onto the page."""
        data = [name, media_type, base64.b64encode(clip).decode()]
        transfer = self.page.evaluate_handle(DROP, data)
        self.page.dispatch_event("#main", "drop", {"dataTransfer": transfer})

    def ask(self, clip: bytes, name: str = "clip.mp4", media_type: str = "video/mp4") -> dict[str, Any]:
        """Drop a clip, wait until its answer is shown, and return the service's answer."""
        with self.page.expect_response(lambda answer: "/predict" in answer.url) as answered:
            self.drop(clip, name, media_type)
        self.await_state("verdict")
        return cast(dict[str, Any], answered.value.json())

    def await_state(self, state: str) -> None:
        """Wait until the page shows its ``start``, ``working``, ``problem`` or ``verdict``."""
        self.page.wait_for_selector(f"body[data-state={state}]")

    def cells(self, selector: str) -> npt.NDArray[np.float64]:
        """Return the mean brightness, 0 to 255, of 7×7 cells of a canvas or video."""
        return np.array(self.page.locator(selector).evaluate(CELLS)).reshape(7, 7)

    def seek(self, k: int) -> None:
        """Click on a frame of the strip and wait until it is on the screen."""
        self.page.locator("#strip button").nth(k).click()
        self.page.wait_for_selector(f"#overlay[data-frame='{k}']", state="attached")
        self.await_script("!document.getElementById('video').seeking")

    def await_script(self, script: str) -> None:
        """Wait until a script returns something true. Playwright's own way needs ``eval``, which the page forbids."""
        until(lambda: self.page.evaluate(script))

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.logged_errors.append(message.text)


def hottest(cells: npt.ArrayLike) -> tuple[int, int]:
    """Return row and column of the largest cell."""
    array = np.asarray(cells)
    row, column = np.unravel_index(int(array.argmax()), array.shape)
    return int(row), int(column)


def wandering_light(
    codec: str = "libx264", container: str = "mp4", counter_clockwise: float = 0, start: int = 0
) -> bytes:
    """Render two seconds of a dark picture with one bright cell of 7×7: at the top right, then at the bottom left.

    The first of its 50 frames is shown at the time of frame ``start``.
    """

    def picture(number: int) -> Image:
        row, column = (1, 5) if number < 25 else (5, 1)
        canvas = np.full((280, 420, 3), 20, np.uint8)
        canvas[40 * row : 40 * row + 40, 60 * column : 60 * column + 60] = 250
        return canvas

    return encode(
        map(picture, range(50)),
        codec=codec,
        container=container,
        pts=range(start, start + 50),
        options=ENCODER_OPTIONS[codec],
        prepare=lambda stream: stream.set_display_rotation(counter_clockwise) if counter_clockwise else None,
    )
