"""A Chromium to look at pages with: Debian's, Google's, or the program that CHROMIUM names."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextmanager
def launched() -> Iterator[Browser]:
    """A browser, in a process of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page that was opened, with all that it asked for and complained of."""

    def __init__(self, browser: Browser, file: Path, fragment: str = "", **settings: Any) -> None:
        self.folder = file.parent
        self.requests: list[str] = []
        self.complaints: list[str] = []
        new_context: Any = browser.new_context
        self.context = new_context(**{"viewport": {"width": 1280, "height": 900}} | settings)
        self.page: Page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(f"{file.as_uri()}{fragment}")

    def cell(self, cell: str) -> Any:
        """The first image of a cell, variant.prompt.seed, that is shown."""
        return self.page.locator(f'a[data-cell="{cell}"]:visible').first

    def text(self, name: str) -> str:
        """What an element says, by its id."""
        return self.page.locator(f"#{name}").inner_text()

    def close(self) -> None:
        """Close it, and hold it to what every page has to keep: no complaint, and nothing from outside its folder."""
        self.context.close()
        assert self.complaints == []
        assert all(url.startswith((self.folder.as_uri(), "data:")) for url in self.requests), self.requests
