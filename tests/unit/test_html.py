"""The HTML page of a memory report: hostile names stay text, numbers are the report's, bytes are reproducible."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise
from typing import Any

import pytest
from example_report import HOSTILE_NAMES, example_report

from medyate_planner.memory.moments import Category
from medyate_planner.reporting.html import axis_ticks, drawing_of, embedded_json, printable, render_html
from medyate_planner.reporting.kinds import KINDS
from medyate_planner.reporting.page import Cell, Table
from medyate_planner.reporting.page_sections import LARGEST_MODULES, page_of
from medyate_planner.reporting.view import MemoryReport


class Reader(HTMLParser):
    """What a browser's parser finds: elements with their attributes, and the texts between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def data_block(html: str) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="report-data">(.*?)</script>', html, re.DOTALL)
    assert len(found) == 1
    data: dict[str, Any] = json.loads(found[0])
    return data


@pytest.fixture(scope="module")
def report() -> MemoryReport:
    return example_report()


@pytest.fixture(scope="module")
def hostile_html() -> str:
    return render_html(example_report(hostile=True))


def test_render_html_is_deterministic(report: MemoryReport) -> None:
    again = MemoryReport.model_validate_json(report.model_dump_json())
    assert render_html(report) == render_html(report) == render_html(again)


def test_render_html_refers_to_nothing_outside(report: MemoryReport) -> None:
    html = render_html(report)
    assert not re.findall(r"https?://|url\(|@import|\bfetch\(|XMLHttpRequest", html)
    reader = Reader(html)
    references = [a[key] for _, a in reader.elements for key in ("src", "href", "action", "data", "srcset") if key in a]
    assert all(reference is not None and reference.startswith(("#", "data:,")) for reference in references)
    policy = next(a["content"] for a in reader.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy


def test_every_page_is_of_one_family() -> None:
    folder = resources.files("medyate_planner.reporting").joinpath("templates")
    pages = {it.name: it.read_text(encoding="utf-8") for it in folder.iterdir() if it.name.endswith(".html")}
    assert [name for name, text in pages.items() if "<head" in text] == ["base.html"]
    shared = {"base.html", "macros.html", "charts.html"}
    assert len(pages) >= len(shared) + len(KINDS)
    for name in pages.keys() - shared:
        assert pages[name].startswith('{% extends "base.html" %}\n'), name


def test_render_html_has_no_inline_handlers_or_styles(hostile_html: str) -> None:
    for tag, attributes in Reader(hostile_html).elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)


def test_render_html_makes_hostile_names_text(report: MemoryReport, hostile_html: str) -> None:
    harmless, reader = Reader(render_html(report)), Reader(hostile_html)
    assert [tag for tag, _ in reader.elements] == [tag for tag, _ in harmless.elements]
    for name in HOSTILE_NAMES:
        assert printable(name) in reader.texts
    assert len(reader.all("script")) == 2
    assert reader.all("img") == []


def test_render_html_prints_no_control_characters(hostile_html: str) -> None:
    assert {c for c in hostile_html if not c.isprintable()} == {"\n"}


def test_printable_replaces_what_can_not_be_seen() -> None:
    assert printable("a\x1b[31m\u2028\u202e\ud800 é") == "a\ufffd[31m\ufffd\ufffd\ufffd é"


def test_embedded_json_can_not_end_its_element() -> None:
    hostile = ["</script><!--", "<script>", "a & b > c", "\u2028\u2029"]
    text = embedded_json(hostile)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == hostile


def test_data_block_equals_the_report(report: MemoryReport) -> None:
    data = data_block(render_html(report))
    assert data == json.loads(json.dumps(drawing_of(report.steps)))
    assert [step["name"] for step in data["steps"]] == ["inference", "full", "lean_full", "plan"]
    for drawn, step in zip(data["steps"], report.steps, strict=True):
        line = step.timeline
        for number in ("saved_bytes", "training_bytes", "live_peak_bytes"):
            assert drawn[number] == getattr(step, number)
        assert drawn["live_bytes"] == [list(column) for column in zip(*line.live_bytes, strict=True)]
        for column in ("operator", "module", "source"):
            assert [data["texts"][i] for i in drawn[column]] == list(getattr(line, column))
        assert [Category(c["css"]).meaning for c in drawn["categories"]] == [c["meaning"] for c in drawn["categories"]]
        runs = [phase["name"] for phase in drawn["phases"] for _ in range(phase["start"], phase["end"])]
        assert runs == list(line.phase)


def test_data_block_categories_sum_to_totals(report: MemoryReport) -> None:
    for drawn in data_block(render_html(report))["steps"]:
        assert drawn["total_bytes"] == [sum(moment) for moment in zip(*drawn["live_bytes"], strict=True)]
        assert max(drawn["total_bytes"]) == drawn["total_bytes"][drawn["peak_index"]] == drawn["live_peak_bytes"]
        assert drawn["ticks"][-1]["bytes"] >= drawn["live_peak_bytes"]


@pytest.mark.parametrize("largest", [0, 1, 2, 7, 999, 1000, 1001, 19_334_923, 2**63])
def test_axis_ticks_are_few_round_and_reach_the_largest(largest: int) -> None:
    ticks = axis_ticks(largest)
    assert ticks[0] == 0
    assert ticks[-2] < max(largest, 1) <= ticks[-1]
    assert 2 <= len(ticks) <= 7
    assert {b - a for a, b in pairwise(ticks)} == {ticks[1]}
    assert str(ticks[1]).rstrip("0") in ("1", "2", "5")


def values(table: Table, column: str) -> list[int | None]:
    return [row[table.columns.index(column)].value for row in table.rows]


def test_page_of_states_the_three_numbers(report: MemoryReport) -> None:
    table = page_of(report).steps
    assert values(table, "saved") == [step.saved_bytes for step in report.steps]
    assert values(table, "training") == [step.training_bytes for step in report.steps]
    assert values(table, "live peak") == [step.live_peak_bytes for step in report.steps]
    assert values(table, "closed-form bound") == [step.live_peak_bound_bytes for step in report.steps]
    assert values(table, "allocator's peak") == [step.allocator_peak_bytes for step in report.steps]
    assert page_of(example_report(optional=False)).steps.columns == ("step", "saved", "training", "live peak")


def test_page_of_peak_parts_sum_to_the_total(report: MemoryReport) -> None:
    for panel, step in zip(page_of(report).panels, report.steps, strict=True):
        assert sum(part.cell.value or 0 for part in panel.parts) == panel.total.value == step.live_peak_bytes


def test_page_of_module_table_sums_to_its_total(report: MemoryReport) -> None:
    table = page_of(report).modules
    for index, name in enumerate(table.columns):
        if table.numeric[index]:
            assert sum(value or 0 for value in values(table, name)) == table.total[index].value
    assert table.total[table.columns.index("saved")].value == report.full.saved_bytes
    assert table.total[table.columns.index("weights")].value == report.full.weights_bytes


def test_page_of_bars_hold_every_byte_once() -> None:
    report = example_report(blocks=60)
    bars = page_of(report).bars
    assert len(bars) == LARGEST_MODULES + 1
    shown = sum(module.total_bytes > 0 for module in report.modules) - LARGEST_MODULES
    assert bars[-1].name == f"other ({shown} modules)"
    assert sum(bar.total.value or 0 for bar in bars) == sum(module.total_bytes for module in report.modules)
    for bar in bars:
        assert sum(part.cell.value or 0 for part in bar.parts) == bar.total.value
        assert not bar.fits or bar.parts[-1].start + bar.parts[-1].width <= 100.01
    assert not bars[-1].fits


def test_render_html_shows_exact_and_human_bytes(report: MemoryReport) -> None:
    texts = Reader(render_html(report)).texts
    assert f"{report.full.live_peak_bytes:,} B" in texts
    assert "19.3 MB" in texts


def test_render_html_marks_a_difference(report: MemoryReport) -> None:
    html = render_html(report)
    assert "1 of 2 figures differ" in html
    assert 'class="number alert" data-value="4096"' in html
    agreeing = report.model_copy(update={"measured": report.measured[:1]})
    assert "every figure agrees to the byte" in render_html(agreeing)


def test_render_html_shows_a_capture_error(report: MemoryReport) -> None:
    failed = report.model_copy(
        update={"capture_error": "line 3: <b>no</b>\x07\n  line 4", "layers": (), "accountings": ()}
    )
    html = render_html(failed)
    assert "<pre>\nline 3: &lt;b&gt;no&lt;/b&gt;\ufffd\n  line 4\n</pre>" in html
    assert 'id="layers"' not in html
    assert 'id="layers"' in render_html(report)


def test_render_html_accepts_the_least_a_report_can_hold(report: MemoryReport) -> None:
    empty = report.model_copy(update={"steps": (), "modules": (), "layers": (), "accountings": (), "measured": ()})
    assert data_block(render_html(empty))["steps"] == []
    only = report.steps[3].timeline.model_copy(update={"categories": ("something_new",), "live_bytes": ((5,),) * 43})
    moments = len(report.steps[3].timeline.phase)
    only = only.model_copy(update={"live_bytes": ((5,),) * moments, "peak_index": 0})
    step = report.steps[3].model_copy(update={"timeline": only, "live_peak_bytes": 5})
    assert "something_new" in render_html(report.model_copy(update={"steps": (step,)}))


def test_table_numeric_ignores_gaps() -> None:
    gap, number = Cell(text=""), Cell(text="1", value=1)
    table = Table(id="t", caption="", columns=("a", "b"), rows=((gap, gap), (gap, number)))
    assert table.numeric == (False, True)
    assert replace(table, rows=()).numeric == ()
