"""The page of a frontier in a real browser: it asks for nothing, complains of nothing, and shows the file's numbers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from medyate_planner import FrontierReport, frontier

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, the driver of a browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")
NAME = "<img src=x onerror=window.harmed=1>\x1b[2J"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def made() -> FrontierReport:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 5))
    found = frontier(model, torch.zeros(2, 3, 8, 8), "2kB:200kB:9", spec=NAME)
    assert found.knee_bytes is not None
    assert not found.points[0].feasible
    return found


class Opened:
    """A page that was opened, and what it complained of or asked the network for."""

    def __init__(self, browser: Browser, report: FrontierReport, file: Path, **context: Any) -> None:
        report.save(file)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page: Page = browser.new_context(**context).new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    def close(self) -> None:
        assert self.complaints == []
        assert self.requests == [self.page.url]
        self.page.context.close()


def test_page_shows_the_numbers_of_the_file(browser: Browser, made: FrontierReport, tmp_path: Path) -> None:
    opened = Opened(browser, made, tmp_path / "frontier.html")
    page = opened.page
    code = "(rows) => rows.map((row) => [...row.cells].map((cell) => cell.dataset.value ?? null))"
    rows = page.eval_on_selector_all("#table-points tbody tr", code)
    for row, point in zip(rows, made.points, strict=True):
        assert int(row[0]) == point.budget_bytes
        if not point.feasible:
            assert row[1:] == [None] * 8
            continue
        assert int(row[1]) == point.used_bytes
        assert float(row[2]) == point.objective
        assert row[3] is None if point.marginal_per_kb is None else float(row[3]) == point.marginal_per_kb
        assert [int(text) for text in row[4:7]] == [point.layers, point.channels, point.biases]
    dots = page.eval_on_selector_all("circle.dot", "(dots) => dots.map((dot) => Number(dot.dataset.budget))")
    assert dots == [point.budget_bytes for point in made.feasible]
    assert page.get_attribute("circle.dot.knee", "data-budget") == str(made.knee_bytes)
    assert page.evaluate("window.harmed") is None
    assert page.inner_text("h1").startswith("<img src=x")
    opened.close()


def test_page_draws_a_curve_that_rises(browser: Browser, made: FrontierReport, tmp_path: Path) -> None:
    opened = Opened(browser, made, tmp_path / "frontier.html")
    code = "(dots) => dots.map((dot) => dot.getBoundingClientRect()).map((box) => [box.x, box.y + box.height / 2])"
    places = opened.page.eval_on_selector_all("circle.dot:not(.knee)", code)
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)
    box = opened.page.locator("svg.frontier").bounding_box()
    assert box is not None
    assert all(box["x"] <= x <= box["x"] + box["width"] for x, _ in places)
    opened.close()


def test_page_fits_a_phone_and_the_dark(browser: Browser, made: FrontierReport, tmp_path: Path) -> None:
    phone = Opened(browser, made, tmp_path / "phone.html", viewport={"width": 375, "height": 700}, is_mobile=True)
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 375
    phone.close()
    colour = "getComputedStyle(document.body).backgroundColor"
    light = Opened(browser, made, tmp_path / "light.html")
    dark = Opened(browser, made, tmp_path / "dark.html", color_scheme="dark")
    assert light.page.evaluate(colour) != dark.page.evaluate(colour)
    dark.page.emulate_media(media="print")
    assert dark.page.locator("nav").is_hidden()
    assert dark.page.locator("svg.frontier").is_visible()
    light.close()
    dark.close()
