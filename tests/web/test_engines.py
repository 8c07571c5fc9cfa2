"""The page in the engines of Chromium, Firefox and Safari, whose clocks, layers and uploads differ.

Pictures and maps are read from what the browser shows: the pictures of the clips carry their number as a bar code, and
the maps of the tiny bundle follow the brightness of the pictures.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from selenium.common import TimeoutException
from urllib3.exceptions import ReadTimeoutError

from model_export.rendering.figure import ENCODER_OPTIONS
from service.http.problems import KINDS
from tests.e2e.process import Server, running
from tests.processes import until
from tests.service.video.clips import Image, encode
from tests.web.engines import ENGINES, Engine, browsing
from tests.web.neighbours import losing_network

RATE = 25
PICTURES = 20
SEEKS = 20
LOOPS = 3
MOMENTS = 60
BITS = 5
SIDE = 32  # pixels on each side of a cell
# Reads what the page shows: the numbers of the picture and of the map, and where the page says that it is.
READ = """
    const numberOf = (source) => {
        const canvas = document.createElement("canvas");
        canvas.width = canvas.height = 70;
        const context = canvas.getContext("2d", {willReadFrequently: true});
        context.drawImage(source, 0, 0, 70, 70);
        const {data} = context.getImageData(0, 5, 70, 1); // the middle of the first row of cells
        const levels = Array.from({length: 7}, (_, cell) => data[40 * cell + 20] * data[40 * cell + 23]);
        const middle = (levels[BITS] + levels[BITS + 1]) / 2; // of a white and a black cell
        return levels.slice(0, BITS).reduce((number, level, bit) => number | ((level > middle) << bit), 0);
    };
    const show = (id) => document.getElementById(id);
    const read = () => {
        const buttons = [...show("strip").children];
        return {
            picture: numberOf(show("video")),
            map: numberOf(show("overlay")),
            frame: Number(show("overlay").dataset.frame),
            marked: buttons.findIndex((button) => button.ariaCurrent === "true"),
            position: Number(show("position").value),
            cursor: parseFloat(show("plot-cursor").style.left),
            clock: parseFloat(show("time").textContent),
        };
    };
""".replace("BITS", str(BITS))


# Reads what the page shows at some moments, until the video has begun again some times, or after seconds. Without a
# GPU, WebKit begins again up to half a second before the end.
PLAY = (
    READ
    + """
    const [loops, moments] = arguments;
    const shown = [];
    const begun = performance.now();
    let rounds = 0;
    for (let before = 0; (rounds < loops || shown.length < moments) && performance.now() - begun < 20_000; ) {
        await new Promise((drawn) => requestAnimationFrame(drawn));
        shown.push(read());
        rounds += show("video").currentTime < before;
        before = show("video").currentTime;
    }
    return [rounds, shown];
"""
)
# Clicks on frames of the strip. Reads what the page shows once picture and map agree, or after seconds.
SEEK = (
    READ
    + """
    const [frames] = arguments;
    const shown = [];
    for (const k of frames) {
        show("strip").children[k].click();
        const begun = performance.now();
        do {
            await new Promise((drawn) => requestAnimationFrame(drawn));
            shown[k] = read();
        } while ((shown[k].frame !== k || shown[k].picture !== shown[k].map) && performance.now() - begun < 3000);
    }
    return shown.filter(Boolean);
"""
)


class Shown(NamedTuple):
    """What the page shows at one moment, as READ returns it."""

    picture: int
    map: int
    frame: int
    marked: int
    position: float
    cursor: float
    clock: float


def barred(number: int) -> Image:
    """A picture of 7×7 cells. Each row shows a number's bits, lowest first, then a white cell and a black one."""
    row = [*(number >> bit & 1 for bit in range(BITS)), 1, 0]
    cells = np.where(np.tile(np.array(row, bool), (7, 1)), np.uint8(235), np.uint8(20))
    return np.repeat(np.repeat(cells, SIDE, 0), SIDE, 1)[..., np.newaxis].repeat(3, axis=2)


def barred_clip(codec: str, container: str, *, b_frames: int = 0, start: int = 0) -> bytes:
    """A clip of pictures that show their number. The first is shown at the time of picture ``start``."""
    options = dict(ENCODER_OPTIONS.get(codec, {})) | ({"bf": str(b_frames)} if codec == "libx264" else {})
    pictures = map(barred, range(PICTURES))
    pts = range(start, start + PICTURES)
    return encode(pictures, codec=codec, container=container, rate=RATE, options=options, pts=pts)


CLIPS = {
    "plain.mp4": barred_clip("libx264", "mp4"),
    "b-frames.mp4": barred_clip("libx264", "mp4", b_frames=2),
    "b-frames.mov": barred_clip("libx264", "mov", b_frames=2),
    "plain.webm": barred_clip("libvpx", "webm"),
}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with browsing(request.param, tmp_path_factory.mktemp("home")) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "log.jsonl"
    with running(tiny_bundle, log, {"UPLOAD_TIMEOUT_S": "0.6"}) as server:
        yield server


def retried(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test again if WebKit hangs, up to twice.

    On a busy machine GStreamer 1.22 sometimes waits for itself when a video is sought or replaced.
    """

    @functools.wraps(test)
    def run(engine: Engine, **fixtures: Any) -> None:
        for tries_left in (2, 1, 0):
            try:
                return test(engine=engine, **fixtures)
            except (TimeoutException, ReadTimeoutError):
                if engine.name != "webkit" or not tries_left:
                    raise
                engine.stop()
                engine.start()
        return None

    return run


def ask(engine: Engine, server: Server, clip: bytes, file: Path) -> None:
    """Open the page, choose a clip and wait for its answer."""
    file.write_bytes(clip)
    engine.open(server.url)
    engine.choose(file)
    engine.await_state("verdict")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "b-frames.mp4" else pytest.mark.ci) for name in CLIPS]
)
@retried
def test_map_and_picture_stay_together(engine: Engine, server: Server, tmp_path: Path, name: str) -> None:
    ask(engine, server, CLIPS[name], tmp_path / name)
    rounds, shown_while_playing = engine.run(PLAY, LOOPS, MOMENTS)
    played = [Shown(**shown) for shown in shown_while_playing]
    sought = [Shown(**shown) for shown in engine.run(SEEK, [*range(0, 40, 40 // SEEKS)])]

    assert [shown.map for shown in sought] == [shown.picture for shown in sought] == [*range(PICTURES)]
    assert rounds >= LOOPS
    # A browser shows a picture up to one frame of the screen before or after its clock says so, a busy machine later.
    # With the wrong clock or a map that stands still, hardly any are close.
    close = [abs(shown.map - shown.picture) <= 1 for shown in played]
    assert sum(close) / len(close) > 0.5
    for shown in played:
        assert shown.marked == shown.frame
        assert shown.clock <= PICTURES / RATE
    later = played[len(played) // 2 :]  # after the video has begun again
    pictures = {each.picture for each in later}  # a busy machine does not show all
    for places in ({each.map for each in later}, {each.position for each in later}, {each.cursor for each in later}):
        assert len(places) > len(pictures) / 2


@retried
def test_a_clip_can_be_sought_to_its_end_and_back(engine: Engine, server: Server, tmp_path: Path) -> None:
    ask(engine, server, CLIPS["plain.mp4"], tmp_path / "clip.mp4")
    (shown,) = engine.run(SEEK, [20])
    engine.run("const at = document.getElementById('position'); at.value = at.max; at.oninput();")
    engine.await_script("return !document.getElementById('video').seeking")

    assert Shown(**shown).picture == 10
    (shown,) = engine.run(SEEK, [6])
    assert Shown(**shown).picture == Shown(**shown).map == 3
    assert engine.run("return document.getElementById('video').seeking") is False


@retried
def test_a_clip_chosen_before_the_first_is_shown_takes_its_place(
    engine: Engine, server: Server, tmp_path: Path
) -> None:
    for name in ("b-frames.mov", "b-frames.mp4"):
        (tmp_path / name).write_bytes(CLIPS[name])
    engine.open(server.url)
    engine.choose(tmp_path / "b-frames.mov")
    engine.choose(tmp_path / "b-frames.mp4")
    engine.await_state("verdict")
    sought = [Shown(**shown) for shown in engine.run(SEEK, [0, 20, 38])]

    assert engine.text("clip-name").startswith("b-frames.mp4")
    assert [shown.map for shown in sought] == [shown.picture for shown in sought] == [0, 10, 19]


@retried
def test_the_attention_is_painted_over_the_video(engine: Engine, server: Server, tmp_path: Path) -> None:
    ask(engine, server, CLIPS["plain.mp4"], tmp_path / "clip.mp4")
    engine.run(SEEK, [20])

    until(lambda: colourful(engine) > 0.1)
    engine.run("document.getElementById('show').click()")  # hides the attention
    until(lambda: colourful(engine) < 0.01)


def colourful(engine: Engine) -> float:
    """Return the share of coloured pixels where the display shows the clip, which itself is black and white."""
    colours = np.asarray(engine.photograph("screen"), int)
    return float((np.ptp(colours, axis=2) > 25).mean())


@retried
def test_an_upload_that_stalls_and_a_file_that_is_gone_are_told(engine: Engine, server: Server, tmp_path: Path) -> None:
    file = tmp_path / "clip.mp4"
    file.write_bytes(bytes(400_000))
    with losing_network(server.port, 50_000) as url:
        engine.open(url)
        engine.choose(file)
        engine.await_state("problem")
        told = engine.text("problem-title")
        refused = server.metric("request_seconds_count", status="408")
        file.unlink()
        engine.driver.find_element("id", "retry").click()
        until(lambda: engine.text("problem-title") == "The file cannot be read")

        assert told in {KINDS["upload_timeout"].title, "The upload was interrupted"}
        assert server.metric("request_seconds_count", status="408") <= refused + 1
