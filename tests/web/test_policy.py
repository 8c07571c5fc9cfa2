"""What a browser refuses to an injected script and to other sites, on the page and on ``/docs``."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.e2e.process import Server
from tests.processes import until
from tests.web.browser import PATIENCE_MS
from tests.web.neighbours import other_site

# Scripts by the directive of the policy that stops them.
INJECTED = {
    "base-uri": "document.head.append(Object.assign(document.createElement('base'), {href: 'http://other.example/'}))",
    "connect-src": "fetch('http://other.example/')",
    "form-action": "const form = document.createElement('form'); form.action = 'http://other.example/';"
    "document.body.append(form); form.submit()",
    "frame-src": "document.body.append(Object.assign(document.createElement('iframe'), {src: '/web/icon.svg'}))",
    "img-src": "new Image().src = 'http://other.example/'",
    "style-src-elem": "document.head.append(Object.assign(document.createElement('style'), {textContent: 'b{top:0}'}))",
}
# The page, which makes no markup from strings, forbids that, too.
TRUSTED_TYPES = {
    "require-trusted-types-for": "document.body.innerHTML = '<b>bold</b>'",
    "trusted-types": "trustedTypes.createPolicy('own', {})",
}
LISTEN = """() => {
    window.refused = [];
    document.addEventListener("securitypolicyviolation", (event) => refused.push(event.effectiveDirective));
}"""
FRAME = """(url) => new Promise((resolve) => {
    const frame = document.createElement("iframe");
    frame.onload = resolve;
    frame.src = url;
    document.body.append(frame);
})"""


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        yield page


@pytest.fixture(scope="module")
def site(browser: Browser) -> Iterator[str]:
    with other_site() as url:
        yield url


@pytest.mark.parametrize(("path", "scripts"), [("/", INJECTED | TRUSTED_TYPES), ("/docs", INJECTED)])
def test_an_injected_script_is_stopped(page: Page, server: Server, path: str, scripts: dict[str, str]) -> None:
    page.goto(f"{server.url}{path}")
    page.evaluate(LISTEN)
    for script in scripts.values():
        page.evaluate(f"() => {{ try {{ {script} }} catch (error) {{}} }}")

    until(lambda: scripts.keys() <= set(page.evaluate("refused")))
    assert page.url == f"{server.url}{path}"


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_another_site_cannot_show_it_in_a_frame(page: Page, server: Server, site: str, path: str) -> None:
    page.goto(site)
    page.evaluate(FRAME, f"{server.url}{path}")

    assert page.frames[1].url == "chrome-error://chromewebdata/"


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_another_site_is_not_told_where_its_visitor_comes_from(
    page: Page, server: Server, site: str, path: str
) -> None:
    page.goto(f"{server.url}{path}")
    with page.expect_navigation(url=f"{site}/"):
        page.evaluate("(url) => { location = url; }", site)

    assert page.evaluate("document.referrer") == ""
