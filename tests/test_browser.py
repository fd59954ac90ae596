"""The fixture for pages: it opens files, and fails a test whose page is not clean."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import OpenPage, browser, open_page, pages  # noqa: F401

CLEAN = "<!doctype html><title>clean</title><p>here</p>"
UNCLEAN = {
    "console: no": "console.error('no')",
    "error: no": "setTimeout(() => { throw new Error('no') })",
    "network: http": "new Image().src = 'http://127.0.0.1:9/none.png'",
}


def test_a_clean_page(open_page: OpenPage, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "page.html").write_text(CLEAN)
    page = open_page(tmp_path / "page.html", width=390, dark=True)
    assert page.title() == "clean"
    assert page.evaluate("[innerWidth, matchMedia('(prefers-color-scheme: dark)').matches]") == [390, True]


@pytest.mark.parametrize("expected", UNCLEAN)
def test_an_unclean_page_fails_its_test(browser: object, tmp_path: Path, expected: str) -> None:  # noqa: F811
    (tmp_path / "page.html").write_text(f"{CLEAN}<script>{UNCLEAN[expected]}</script>")
    with pytest.raises(AssertionError, match=expected), pages(browser) as opened:
        opened(tmp_path / "page.html").wait_for_timeout(200)
