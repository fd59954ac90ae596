"""A headless Chromium for tests of pages: pages are opened from their files, and must leave the console clean.

A test file takes the fixtures by importing them:

    from browser import browser, open_page  # noqa: F401

    def test_a_page(open_page, tmp_path):
        page = open_page(tmp_path / "report.html", width=390)
        assert page.title() == "..."

At the end of the test no page may have reported an error, and none may have asked for anything but files, or for the server of
this machine that the test itself opened: ``open_page("http://127.0.0.1:7860")``. Both fixtures
skip the test where playwright or Chromium is missing. `pip install ".[browser]"` installs playwright; any Chromium of the
system serves (`apt-get install chromium`), so playwright downloads none.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--mute-audio"]
OFFLINE = ("file:", "data:", "blob:", "about:")
"""What a page may ask for: nothing that needs a network."""

SERVER = "http://127.0.0.1:"
"""How the address of a page begins that a test serves."""

OpenPage = Callable[..., Any]
"""``open_page(file, width=1280, height=900, dark=False, **settings)``: a page of playwright that shows the file."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for a test file. Two at once cannot be: while playwright runs, the thread has a running event loop."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip('playwright is missing: pip install ".[browser]"')
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip(f"Chromium is missing, looked for {', '.join(NAMES)}: apt-get install chromium")
    with importlib.import_module("playwright.sync_api").sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield chromium
        chromium.close()


@contextmanager
def pages(browser: Any) -> Iterator[OpenPage]:
    """What the fixture :func:`open_page` gives; at the end of the block it fails unless all pages were clean."""
    found: list[str] = []
    contexts: list[Any] = []
    served: list[str] = []

    def watch(page: Any) -> None:
        page.on("console", lambda message: message.type == "error" and found.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: found.append(f"error: {error}"))
        page.on("request", lambda request: is_here(request.url) or found.append(f"network: {request.url}"))

    def is_here(url: str) -> bool:
        return url.startswith((*OFFLINE, *served))

    def opened(
        file: str | Path,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        context: Any = None,
        **settings: Any,
    ) -> Any:
        if context is None:
            scheme = "dark" if dark else "light"
            viewport = {"width": width, "height": height}
            context = browser.new_context(viewport=viewport, color_scheme=scheme, **settings)
            context.set_default_timeout(30_000)  # a busy machine
            context.on("page", watch)
            contexts.append(context)
        page = context.new_page()
        if str(file).startswith(SERVER):
            served.append(str(file))
        page.goto(str(file) if str(file).startswith(SERVER) else Path(file).resolve().as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not found, "\n".join(found)


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """Opens a file as a page. Pages of one test share no storage, unless ``context=page.context`` is given."""
    with pages(browser) as opened:
        yield opened
