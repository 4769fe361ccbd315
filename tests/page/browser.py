"""A real Chromium, and what it said while a page was open."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tithe.page import Report, write

NAMES = ("chromium", "chromium-browser", "google-chrome")
SIZE = (1280, 900)
QUIET = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")


def executable() -> str | None:
    """Where a Chromium lies: as `CHROMIUM` says, or on the path."""
    return os.environ.get("CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def launched() -> Iterator[Any]:
    """Start one with a tab, or skip with the reason why there is none."""
    found = executable()
    if found is None:
        pytest.skip("no chromium on PATH: the page's scripts were not run")
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: the page's scripts were not run")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=list(QUIET))
        yield browser.new_page()
        browser.close()


class Opened:
    """A report in a tab with what it complained of, what it asked for, and short ways to look at it.

    The tab is one for all reports, since a new one costs more than most of what is looked at in it.
    """

    def __init__(self, tab: Any, path: Path, address: str = "", size: tuple[int, int] = SIZE, **media: str) -> None:
        self.page = tab
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.listeners = {
            "console": lambda said: self.complaints.append(f"{said.type}: {said.text}"),
            "pageerror": lambda error: self.complaints.append(str(error)),
            "dialog": lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()),
            "request": lambda request: self.requests.append(request.url),
        }
        for event, listener in self.listeners.items():
            tab.on(event, listener)
        tab.set_viewport_size({"width": size[0], "height": size[1]})
        tab.emulate_media(**{"media": "screen", "color_scheme": "light", **media})
        self.home = path.as_uri()
        tab.goto(f"{self.home}#{address}" if address else self.home)
        tab.locator("html[data-ready]").wait_for(state="attached", timeout=20_000)

    def one(self, selector: str) -> Any:
        """The only element of a selector; a name alone is that of a field to fill."""
        return self.page.locator(selector)

    def fill(self, section: str, name: str) -> Any:
        """The field of a section that scripts fill."""
        return self.page.locator(f'#{section} [data-fill="{name}"]')

    def text(self, section: str, name: str) -> str:
        """What stands in it."""
        return str(self.fill(section, name).text_content())

    def each(self, selector: str, of: str) -> list[Any]:
        """An expression of `node` for each element."""
        return list(self.page.locator(selector).evaluate_all(f"nodes => nodes.map(node => {of})"))

    def choose(self, section: str, name: str, label: str) -> None:
        """Choose from a list by what it says."""
        self.page.locator(f'#{section} select[name="{name}"]').select_option(label=label)

    def press(self, keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys.split():
            self.page.keyboard.press(key)

    def active(self, of: str) -> Any:
        """An expression of the focused element, `node`."""
        return self.page.evaluate(f"(() => {{ const node = document.activeElement; return {of}; }})()")

    def close(self) -> None:
        """Leave it; it must have been quiet and have asked for nothing but itself."""
        for event, listener in self.listeners.items():
            self.page.remove_listener(event, listener)
        assert self.complaints == []
        assert [url for url in self.requests if not url.startswith((self.home, "data:"))] == []


def opened(tab: Any, report: Report, folder: Path, address: str = "", **options: Any) -> Opened:
    """Write a report under a name of its own, so that it is loaded anew, and open it."""
    return Opened(tab, write(report, folder / f"{len(list(folder.iterdir()))}.html"), address, **options)
