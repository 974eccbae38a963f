"""The page of a benchmark in a real browser: it asks for nothing, complains of nothing, and shows the numbers."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from bench_results import MATRIX, NAME, results

from medyate_planner.bench.records import Records
from medyate_planner.bench.report import document_of
from medyate_planner.reporting.document import Document, render_document_html

if TYPE_CHECKING:
    from playwright.sync_api import Browser

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, the driver of a browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def document(tmp_path: Path) -> Document:
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(run) + "\n" for run in results()))
    return document_of(MATRIX, Records(tmp_path), command="medyate bench m.toml")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_shows_the_numbers_of_the_results(
    browser: Browser, document: Document, tmp_path: Path, width: int, scheme: str
) -> None:
    file = tmp_path / "report.html"
    file.write_text(render_document_html(document), encoding="utf-8")
    complaints: list[str] = []
    requests: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.inner_text("h1") == NAME
    code = "(rows) => rows.map((row) => [...row.cells].map((cell) => cell.dataset.value ?? cell.innerText.trim()))"
    shown = page.eval_on_selector_all("#table-standings tbody tr", code)
    own = [run["accuracy"] for run in results() if (run["contender"], run["budget"]) == ("a", "2%")]
    (row,) = [row for row in shown if row[:2] == ["a", "2%"]]
    assert float(row[2]) == pytest.approx(statistics.fmean(own))
    assert int(row[-1]) == len(own) == 6
    charts = page.eval_on_selector_all("svg.lines", "(all) => all.map((one) => one.querySelectorAll('.dot').length)")
    assert charts == [2 * 2 + 2, 2 * 2 + 2, 2]  # frontier and time: a, b, head, full; layers: four and eight
    boxes = page.eval_on_selector_all(
        "svg.lines .dot", "(dots) => dots.map((dot) => dot.getBoundingClientRect()).map((b) => [b.left, b.right])"
    )
    assert all(0 <= left < right <= width for left, right in boxes)
    headings = page.eval_on_selector_all("h1, h2", "(all) => all.map((one) => one.tagName)")
    assert headings == ["H1"] + ["H2"] * len(document.sections)
    assert page.evaluate("window.harmed") is None
    assert complaints == []
    assert requests == [page.url]
    context.close()
