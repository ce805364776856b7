"""Opens pages in a real browser, cut off from every network."""

import gc
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def open_page(
    path: Path, *, width: int = 1200, height: int = 900, dark: bool = False
) -> Iterator[Any]:
    """A Playwright page that shows the file; on leaving, no error and no request must have been.

    The test is skipped where there is no Chromium.
    """
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not here: install Debian's chromium")
    from playwright.sync_api import sync_playwright

    troubles: list[str] = []
    requests: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        page = browser.new_page(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
        )
        page.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.resolve().as_uri())
        yield page
        browser.close()
    _collect_transports()
    outside = [url for url in requests if not url.startswith(("file:", "data:"))]
    assert not troubles
    assert not outside


def _collect_transports() -> None:
    """Collects what Playwright leaves of its driver's pipes, whose event loop is closed by then.

    Here and not in the middle of a later test, where it would be a warning and so an error.
    """
    report = sys.unraisablehook

    def report_others(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            report(unraisable)

    sys.unraisablehook = report_others
    try:
        gc.collect()
    finally:
        sys.unraisablehook = report


def assert_figures_can_be_read(page: Any) -> None:
    """No text of a figure is shown smaller than 11 px, and none is TeX."""
    texts = page.locator("svg text").evaluate_all(
        "all => all.map(each => [each.textContent, each.getScreenCTM().inverse().a,"
        " each.getScreenCTM().inverse().b, parseFloat(getComputedStyle(each).fontSize)])"
    )
    assert texts
    for text, a, b, size in texts:
        # A text may be turned: the length of one px of the screen, in units of the drawing.
        assert size / math.hypot(a, b) >= 11, text
        assert not re.search(r"\\math|\$|\^", text), text


def assert_fits_the_width(page: Any) -> None:
    """Nothing sticks out of the window to the side: wide tables scroll within themselves."""
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
