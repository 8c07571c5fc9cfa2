"""Takes the README's picture of the page.

To update it, run this with ``LIMELIGHT_SCREENSHOT=docs/page.webp LIMELIGHT_SCREENSHOT_BUNDLE=bundle``.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.e2e.process import Server
from tests.web.browser import Visitor

MAX_BYTES = 150_000
FRAME = 8  # arms on their way down


@pytest.mark.timeout(900)
def test_a_screenshot_of_the_page_with_an_answer_stays_small(
    start: Callable[..., Server], visit: Callable[..., Visitor], tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = Path(os.environ.get("LIMELIGHT_SCREENSHOT_BUNDLE") or tiny_bundle)
    server = start(bundle, REQUEST_TIMEOUT_S="600")
    visitor = visit(server, viewport={"width": 1280, "height": 1180})
    visitor.page.get_by_role("button", name="Try the sample").click()
    visitor.page.wait_for_selector("body[data-state=verdict]", timeout=600_000)
    visitor.seek(FRAME)
    visitor.page.evaluate("scrollTo(0, 0)")
    picture = io.BytesIO()
    Image.open(io.BytesIO(visitor.page.screenshot())).save(picture, "WEBP", quality=80, method=6)

    assert picture.tell() < MAX_BYTES
    Path(os.environ.get("LIMELIGHT_SCREENSHOT") or tmp_path / "page.webp").write_bytes(picture.getvalue())
