"""A page in headless Chromium, opened from the disk. `make browser` brings one."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDE, NARROW = (1280, 900), (360, 740)
IN_A_BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("playwright") is None, reason="playwright is not installed: run `make browser`"),
]


@dataclass
class Tab:
    """An open page, with all that its console said and all that it asked for."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def plot(self, chart: str) -> Any:
        return self.page.locator(f'figure[data-chart="{chart}"] .plot')

    def points(self, chart: str) -> Any:
        """The marks of rows; the ring around the one that the keyboard is on is hollow."""
        return self.plot(chart).locator(".mark-symbol.role-mark path:not([fill='transparent'])")

    def download(self, within: str, kind: str) -> str:
        with self.page.expect_download() as caught:
            self.page.locator(within).locator(f'button[data-download="{kind}"]').click()
        return Path(caught.value.path()).read_text("utf-8")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = own if Path(own).exists() else next(filter(None, map(shutil.which, BROWSERS)), None)
        if found is None:
            pytest.skip("no Chromium is installed: run `make browser`")
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])  # root may run the tests
        yield opened
        opened.close()


Open = Callable[..., Tab]


@pytest.fixture
def open_tab(browser: Any) -> Iterator[Open]:
    """Opens a file; when the test is over, its console must have been silent, and nothing but the file asked for."""
    tabs = []

    def open_it(path: Path, size: tuple[int, int] = WIDE, look: str = "light") -> Tab:
        viewport = {"width": size[0], "height": size[1]}
        context = browser.new_context(viewport=viewport, color_scheme=look, permissions=["clipboard-read"])
        tab = Tab(context.new_page())
        tabs.append(tab)
        tab.page.on("console", lambda message: tab.said.append(message.text))
        tab.page.on("pageerror", lambda error: tab.said.append(str(error)))
        tab.page.on("request", lambda request: tab.asked.append(request.url))
        tab.page.goto(path.as_uri())
        tab.page.evaluate("page.drawn")
        return tab

    yield open_it
    for tab in tabs:
        assert tab.said == []
        assert [url for url in tab.asked if not url.startswith(("file:", "blob:"))] == []
        assert sum(url.startswith("file:") for url in tab.asked) == 1
        tab.page.context.close()


def check_legible(tab: Tab, size: tuple[int, int], look: str) -> None:
    """Nothing is cut off on the right, and every text of a figure stands out from the page."""
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= size[0]
    paper = luminance(tab.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (paper > 0.5) == (look == "light")
    texts = tab.page.evaluate(
        "[...document.querySelectorAll('.plot text')].filter(one => one.textContent && !one.closest('.role-mark'))"
        ".map(one => [getComputedStyle(one).fill, one.getBoundingClientRect().right])"
    )
    assert len(texts) > 50
    for color, right in texts:
        lighter, darker = sorted((luminance(color), paper), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) > 4.5
        assert right <= size[0]


def luminance(color: str) -> float:
    """Of `rgb(1, 2, 3)`."""
    channels = [float(part) / 255 for part in color.partition("(")[2].rstrip(")").split(",")[:3]]
    return sum(w * ((c + 0.055) / 1.055) ** 2.4 for w, c in zip((0.2126, 0.7152, 0.0722), channels, strict=True))
