from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.e2e.process import Server, running
from tests.web.browser import REPORTED, Visitor, chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Per module, because Playwright keeps an event loop running in this thread, and other modules need their own.
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(browser: Browser, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tiny_bundle, tmp_path_factory.mktemp("log") / "log.jsonl", {}) as server:
        yield server


@pytest.fixture
def start(browser: Browser, tiny_bundle: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start a server with settings by name."""
    with ExitStack() as servers:
        yield lambda bundle=tiny_bundle, **settings: servers.enter_context(
            running(bundle, tmp_path / "log.jsonl", settings)
        )


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visitor]]:
    """Open a server's page in a fresh browser context. Fails if the browser logs errors or requests other hosts."""

    @contextmanager
    def visiting(server: Server, **options: Any) -> Iterator[Visitor]:
        with browser.new_context(**{"reduced_motion": "reduce"} | options) as context:
            visitor = Visitor(context.new_page(), f"{server.url}/")
            visitor.arrive()
            yield visitor
            strangers = [url for url in visitor.asked if not url.removeprefix("blob:").startswith(visitor.url)]
            assert strangers == []
            assert [words for words in visitor.logged_errors if not words.startswith(REPORTED)] == []

    with ExitStack() as visits:
        yield lambda server, **options: visits.enter_context(visiting(server, **options))
