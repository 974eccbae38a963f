"""The page of a memory report in a real browser: it draws the report's numbers, sorts, filters and harms nobody."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from example_report import HOSTILE_NAMES, example_report

from medyate_planner.reporting.html import printable, render_html
from medyate_planner.reporting.view import MemoryReport

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, the driver of a browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield found
        found.close()


class Opened:
    """A page that was opened, and what it complained of or asked the network for."""

    def __init__(self, browser: Browser, report: MemoryReport, file: Path, **context: Any) -> None:
        file.write_text(render_html(report), encoding="utf-8")
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page: Page = browser.new_context(**context).new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", self._dismiss)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        self.data: dict[str, Any] = json.loads(self.page.text_content("#report-data") or "")

    def _dismiss(self, dialog: Dialog) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def choose(self, step: int) -> None:
        self.page.click(f"#tab-{step}")

    def drawn_peak(self, step: int) -> int:
        return int(self.page.get_attribute(f"#panel-{step} .peak", "data-peak-bytes") or "")

    def column(self, table: str, column: int, *, shown: bool = False) -> list[str]:
        rows = f"#table-{table} tbody tr{':not([hidden])' if shown else ''}"
        code = "(rows, i) => rows.map((row) => row.cells[i].dataset.value ?? row.cells[i].innerText)"
        return [str(text) for text in self.page.eval_on_selector_all(rows, code, column)]

    def close(self) -> None:
        self.page.context.close()


@pytest.fixture(scope="module")
def report() -> MemoryReport:
    return example_report(hostile=True)


@pytest.fixture
def opened(browser: Browser, report: MemoryReport, tmp_path: Path) -> Iterator[Opened]:
    found = Opened(browser, report, tmp_path / "report.html")
    yield found
    found.close()
    assert found.complaints == []


def test_page_asks_for_nothing_but_itself(opened: Opened) -> None:
    opened.page.wait_for_timeout(200)
    assert opened.requests == [opened.page.url]
    assert opened.complaints == []


def test_page_draws_the_peak_of_each_step(opened: Opened, report: MemoryReport) -> None:
    for index, step in enumerate(report.steps):
        opened.choose(index)
        assert opened.page.locator(f"#panel-{index} .chart").is_visible()
        assert opened.drawn_peak(index) == opened.data["steps"][index]["live_peak_bytes"] == step.live_peak_bytes
        total = opened.page.inner_text(f"#panel-{index} [data-cursor=total] .main")
        assert total == f"{step.live_peak_bytes:,} B"
        bands = opened.page.locator(f"#panel-{index} .bands path").count()
        assert bands == len(step.timeline.categories)


def test_page_lets_hostile_names_do_nothing(opened: Opened, report: MemoryReport) -> None:
    assert opened.page.evaluate("window.harmed") is None
    shown = opened.column("modules", 0)
    for name in HOSTILE_NAMES:
        assert printable(name) in shown
    line = report.steps[1].timeline
    for moment, name in enumerate(line.module):
        opened.page.locator("#cursor-1").fill(str(moment))
        assert opened.page.text_content("#panel-1 [data-cursor=module]") == (printable(name) or "-")
    assert opened.page.evaluate("window.harmed") is None


def test_page_cursor_follows_keyboard_and_pointer(opened: Opened, report: MemoryReport) -> None:
    line = report.steps[1].timeline
    opened.page.focus("#cursor-1")
    opened.page.keyboard.press("Home")
    opened.page.keyboard.press("ArrowRight")
    assert opened.page.inner_text("#panel-1 [data-cursor=moment]") == f"{line.phase[1]}, 2 of {len(line.phase)}"
    assert opened.page.inner_text("#panel-1 [data-cursor=total] .main") == f"{sum(line.live_bytes[1]):,} B"
    assert line.operator[1] in (opened.page.get_attribute("#cursor-1", "aria-valuetext") or "")
    chart = opened.page.locator("#panel-1 .chart")
    width = chart.evaluate("chart => chart.clientWidth")
    chart.hover(position={"x": width - 12, "y": 100})
    assert opened.page.inner_text("#panel-1 [data-cursor=operator]") == line.operator[-1]
    opened.page.click("#panel-1 .to-peak")
    assert opened.page.inner_text("#panel-1 [data-cursor=total] .main") == f"{line.peak_bytes:,} B"


def test_page_tabs_are_moved_by_arrow_keys(opened: Opened) -> None:
    opened.page.focus("#tab-1")
    opened.page.keyboard.press("ArrowRight")
    assert opened.page.get_attribute("#tab-2", "aria-selected") == "true"
    assert [opened.page.locator(f"#panel-{i}").is_visible() for i in range(4)] == [False, False, True, False]
    opened.page.keyboard.press("Home")
    assert opened.page.evaluate("document.activeElement.id") == "tab-0"


@pytest.mark.parametrize("table", ["modules", "layers"])
def test_page_sorts_by_number_and_by_name(opened: Opened, table: str) -> None:
    heads = opened.page.locator(f"#table-{table} thead th")
    last = heads.count() - 1
    for direction in ("descending", "ascending"):
        heads.nth(last).locator("button").click()
        assert heads.nth(last).get_attribute("aria-sort") == direction
        numbers = [int(text) for text in opened.column(table, last)]
        assert numbers == sorted(numbers, reverse=direction == "descending")
        assert len(set(numbers)) > 2
    heads.nth(0).locator("button").click()
    assert [heads.nth(i).get_attribute("aria-sort") for i in (0, last)] == ["ascending", None]
    names = [name for name in opened.column(table, 0) if name.startswith("features.")]
    assert names == sorted(names, key=lambda name: (int(name.split(".")[1]), name))


def test_page_search_filters_and_counts(opened: Opened, report: MemoryReport) -> None:
    everything = len(report.modules)
    assert opened.page.inner_text("#count-modules") == f"{everything} modules"
    opened.page.fill("#search-modules", "FEATURES.7")
    assert opened.column("modules", 0, shown=True) == ["features.7.conv", "features.7.norm", "features.7.act"]
    assert opened.page.inner_text("#count-modules") == f"3 of {everything} modules"
    opened.page.fill("#search-modules", "<script>")
    assert printable(HOSTILE_NAMES[0]) in opened.column("modules", 0, shown=True)
    opened.page.fill("#search-modules", "")
    assert len(opened.column("modules", 0, shown=True)) == everything


def test_page_fits_a_phone(browser: Browser, report: MemoryReport, tmp_path: Path) -> None:
    opened = Opened(browser, report, tmp_path / "phone.html", viewport={"width": 375, "height": 700}, is_mobile=True)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 375
    assert opened.complaints == []
    opened.close()


def test_page_without_scripts_still_states_the_peaks(browser: Browser, report: MemoryReport, tmp_path: Path) -> None:
    opened = Opened(browser, report, tmp_path / "still.html", java_script_enabled=False)
    assert opened.page.locator("noscript p").is_visible()
    for index, step in enumerate(report.steps):
        assert f"{step.live_peak_bytes:,} B" in opened.page.inner_text(f"#panel-{index} tfoot")
    opened.close()


def test_page_keeps_the_peak_of_a_long_timeline(browser: Browser, tmp_path: Path) -> None:
    report = example_report(blocks=666, operators_per_module=5, optional=False)
    assert len(report.modules) == 2000
    assert len(report.steps[1].timeline.operator) > 19_900
    opened = Opened(browser, report, tmp_path / "long.html", viewport={"width": 1280, "height": 900})
    assert opened.drawn_peak(1) == report.steps[1].live_peak_bytes
    path = opened.page.get_attribute("#panel-1 .bands path", "d") or ""
    assert path.count("L") < 4 * 1500
    opened.page.select_option("#panel-1 .window", label="around the peak")
    assert opened.drawn_peak(1) == report.steps[1].live_peak_bytes
    opened.page.fill("#search-modules", "features.66")
    assert opened.page.inner_text("#count-modules") == "21 of 2,000 modules"
    assert opened.complaints == []
    opened.close()
