"""A real browser: Chromium, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
# What a browser prints for every answer that is no success.
EXPECTED = "Failed to load resource"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    if not CHROMIUM:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    options = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@contextmanager
def page_of(chromium: Any, url: str, token: str, **options: Any) -> Iterator[Any]:
    """Yields a page of a signed-in user; fails if a script did, or if the policy for contents was violated."""
    context = chromium.new_context(base_url=url, viewport={"width": 1280, "height": 900}, **options)
    problems: list[str] = []
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(f"a dialog of a script: {dialog.message}"))
    try:
        page.goto("/")
        page.fill("#token", token)
        page.press("#token", "Enter")
        page.wait_for_selector("#trainings")
        yield page
        assert [text for text in problems if EXPECTED not in text] == []
    finally:
        context.close()
