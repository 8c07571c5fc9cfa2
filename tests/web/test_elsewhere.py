"""The page, ``/docs`` and the API in a real browser: behind an ingress with a prefix, and from another origin."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from playwright.sync_api import Browser, Error, Locator, Page, expect

from tests.e2e.process import Server, running
from tests.web.browser import REPORTED, Visitor
from tests.web.neighbours import ingress, other_site

KEY = "elsewhere-7f3a"
PREFIX = "/limelight"
Open = Callable[..., Visitor]

# Sends bytes from a page of another origin; returns what the page may read of the answer.
SEND = """async ([url, text, headers]) => {
    const body = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
    try {
        const answer = await fetch(url, {method: "POST", body, headers});
        return {status: answer.status, headers: Object.fromEntries(answer.headers), body: await answer.json()};
    } catch (error) {
        return {blocked: error.message};
    }
}"""

# Sends bytes without the permission of CORS, so that the page may read nothing of the answer.
SEND_BLINDLY = """([url, text]) => {
    const body = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
    return fetch(url, {method: "POST", body, mode: "no-cors"});
}"""


@pytest.fixture(scope="module")
def site(browser: Browser) -> Iterator[str]:
    with other_site() as url:
        yield url


@pytest.fixture(scope="module")
def server(
    browser: Browser, site: str, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    settings = {"API_KEYS": KEY, "ROOT_PATH": PREFIX, "CORS_ORIGINS": f"https://app.example,{site}"}
    with running(tiny_bundle, tmp_path_factory.mktemp("log") / "log.jsonl", settings) as server:
        yield server


@pytest.fixture(scope="module", params=["strips", "keeps"])
def outside(request: pytest.FixtureRequest, server: Server) -> Iterator[str]:
    """The service's address behind an ingress that removes the prefix, and behind one that keeps it."""
    with ingress(server.port, PREFIX, strips=request.param == "strips") as url:
        yield url + PREFIX


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Open an address in a fresh browser context. Fails if the browser logs errors or requests other addresses."""
    with ExitStack() as contexts:
        visitors = []

        def opening(url: str, within: str, **options: Any) -> Visitor:
            page = contexts.enter_context(browser.new_context(**options)).new_page()
            visitors.append((Visitor(page, url), within))
            visitors[-1][0].arrive()
            return visitors[-1][0]

        yield opening
        for visitor, within in visitors:
            assert [url for url in visitor.asked if not url.removeprefix("blob:").startswith(within)] == []
            assert [words for words in visitor.logged_errors if not words.startswith(REPORTED)] == []


def test_the_page_works_behind_an_ingress(outside: str, open_page: Open, clip: bytes) -> None:
    visitor = open_page(f"{outside}/", outside.removesuffix(PREFIX))
    visitor.page.evaluate("key => sessionStorage.setItem('limelight-api-key', key)", KEY)
    visitor.page.reload()
    answer = visitor.ask(clip)

    assert answer["model"]["name"] == "tiny"
    assert {url for url in visitor.asked if not url.startswith(("blob:", f"{outside}/"))} == set()
    assert f"'{outside}/predict?top_k=5'" in visitor.page.locator("#curl").inner_text()


def test_the_prefix_without_a_slash_leads_to_the_page(server: Server, open_page: Open) -> None:
    with ingress(server.port, PREFIX, strips=False) as url:
        visitor = open_page(url + PREFIX, url)

        expect(visitor.page.locator("#service-state")).to_have_attribute("data-ready", "true")
        assert visitor.page.url == f"{url}{PREFIX}/"


class TestDocs:
    def test_the_api_is_shown_and_can_be_tried_with_a_key(self, outside: str, open_page: Open, clip: bytes) -> None:
        visitor = open_page(f"{outside}/docs", f"{outside}/", http_credentials={"username": "me", "password": KEY})

        expect(try_out(visitor.page, "/model")).to_contain_text("unauthorized")
        authorize(visitor.page)

        expect(try_out(visitor.page, "/model")).to_contain_text('"name": "tiny"')
        expect(try_out(visitor.page, "/predict", clip)).to_contain_text('"probabilities"')

    def test_it_works_without_the_ingress(self, server: Server, open_page: Open) -> None:
        visitor = open_page(f"{server.url}/docs", server.url, http_credentials={"username": "", "password": KEY})
        authorize(visitor.page)

        expect(try_out(visitor.page, "/model")).to_contain_text('"name": "tiny"')

    def test_the_browser_asks_for_a_key(self, server: Server, open_page: Open) -> None:
        with pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):  # nobody is there to enter one
            open_page(f"{server.url}/docs", server.url)


def authorize(page: Page) -> None:
    """Enter the key for the first of Swagger UI's security schemes."""
    page.get_by_role("button", name="Authorize").first.click()
    page.locator(".auth-container input").first.fill(KEY)
    page.locator(".auth-btn-wrapper button[type=submit]").first.click()
    page.locator(".btn-done").first.click()


def try_out(page: Page, path: str, clip: bytes | None = None) -> Locator:
    """Send a request to a path with Swagger UI, and return its response as it is shown."""
    operation = page.locator(".opblock").filter(has=page.locator(f"[data-path='{path}']"))
    if not operation.get_by_role("button", name="Execute").count():
        operation.locator(".opblock-summary-control").click()
        operation.get_by_role("button", name="Try it out").click()
    if clip is not None:
        file: Any = {"name": "clip.mp4", "mimeType": "video/mp4", "buffer": clip}
        operation.locator("input[type=file]").set_input_files(file)
    operation.get_by_role("button", name="Execute").click()
    return operation.locator(".live-responses-table .response-col_description .highlight-code")


class TestOtherOrigin:
    @pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}])
    def test_an_application_of_an_allowed_origin_can_send_clips(
        self, browser: Browser, site: str, server: Server, clip: bytes, headers: dict[str, str]
    ) -> None:
        answer = sent(browser, site, server, clip, headers | {"Content-Type": "video/mp4"})

        assert answer["status"] == 200
        assert answer["body"]["model"]["name"] == "tiny"
        assert {"x-request-id", "server-timing"} <= answer["headers"].keys()

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"Content-Type": "video/mp4"}, 401),
            ({"Content-Type": "text/plain", "X-API-Key": KEY}, 415),
            ({"Content-Type": "video/mp4", "X-API-Key": KEY}, 415),
        ],
    )
    def test_it_can_read_problems(
        self, browser: Browser, site: str, server: Server, headers: dict[str, str], status: int
    ) -> None:
        answer = sent(browser, site, server, b"not a clip", headers)

        assert (answer["status"], answer["body"]["status"]) == (status, status)
        assert answer["body"]["request_id"] == answer["headers"]["x-request-id"]

    def test_an_application_of_another_origin_cannot(self, browser: Browser, server: Server, clip: bytes) -> None:
        with other_site() as stranger:
            answer = sent(browser, stranger, server, clip, {"X-API-Key": KEY})

        assert answer == {"blocked": "Failed to fetch"}


@pytest.fixture(scope="module")
def open_server(browser: Browser, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tiny_bundle, tmp_path_factory.mktemp("log") / "log.jsonl", {}) as server:
        yield server


class TestStrangersOnLoopback:
    """Pages of ``rebound.example``, a name that points to this machine, and a service there that requires no key."""

    @pytest.fixture
    def page(self, browser: Browser) -> Iterator[Page]:
        with browser.new_context() as context:
            yield context.new_page()

    def test_they_cannot_read_answers(self, page: Page, open_server: Server) -> None:
        answer = page.goto(f"http://rebound.example:{open_server.port}/model")

        assert answer is not None
        assert (answer.status, answer.json()["code"]) == (421, "host_not_allowed")

    def test_they_cannot_send_clips(self, page: Page, site: str, open_server: Server, clip: bytes) -> None:
        page.goto(site.replace("127.0.0.1", "rebound.example"))
        page.evaluate(
            SEND_BLINDLY,
            [f"{open_server.url}/predict", clip.decode("latin-1")],
        )

        assert open_server.metric("rejected_total", code="origin_not_allowed") == 1

    @pytest.mark.parametrize("name", ["localhost", "app.localhost"])
    def test_applications_of_this_machine_can(
        self, page: Page, site: str, open_server: Server, clip: bytes, name: str
    ) -> None:
        before = open_server.metric("request_seconds_count", status="200")
        page.goto(site.replace("127.0.0.1", name))
        page.evaluate(
            SEND_BLINDLY,
            [f"{open_server.url}/predict", clip.decode("latin-1")],
        )

        assert open_server.metric("request_seconds_count", status="200") == before + 1


def sent(browser: Browser, site: str, server: Server, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
    """Send a clip from a page of another site, and return what the page can read of the answer."""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(site)
        arguments = [f"{server.url}/predict", body.decode("latin-1"), headers]
        return cast(dict[str, Any], page.evaluate(SEND, arguments))
