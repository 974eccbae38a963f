"""The page of a plan as data: its sums, its sentences, what is left out, and what a foreign plan can not do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from example_report import HOSTILE_NAMES, example_report
from example_run import BUDGET_BYTES, batch, example_plan, hostile_plan, network

from medyate_planner import InputError, Plan, plan
from medyate_planner.models import load_model
from medyate_planner.planning.summary import quota_text
from medyate_planner.reporting.html import axis_ticks, printable
from medyate_planner.reporting.kinds import KINDS, page_of, write_drawn
from medyate_planner.reporting.page import Table
from medyate_planner.reporting.plan_page import plan_page_of, render_plan_html
from medyate_planner.reporting.plan_timeline import PlanTimeline, timeline_of
from medyate_planner.reporting.step_drawing import MOST_MOMENTS, SIZE, drawn_moments, step_drawing
from medyate_planner.reporting.view import ReportedTimeline

UNKNOWN = PlanTimeline(reason="not asked for")


@pytest.fixture(scope="module")
def zoo_plan() -> Plan:
    """A plan whose model can be built by its name, without weights."""
    loaded = load_model("mbv2-w0.35", num_classes=5, input_shape=(3, 64, 64), allocate=False)
    facts = {"spec": "mbv2-w0.35", "num_classes": 5, "input_shape": (3, 64, 64)}
    return plan(loaded.model, torch.zeros(4, 3, 64, 64, device="meta"), "200kB", model_facts=facts)


@pytest.fixture(scope="module")
def timeline(zoo_plan: Plan) -> PlanTimeline:
    return timeline_of(zoo_plan)


def values(table: Table, column: str) -> list[float | None]:
    return [row[table.columns.index(column)].value for row in table.rows]


def test_page_lists_the_layers_of_the_plan_in_order() -> None:
    made = example_plan()
    page = plan_page_of(made, UNKNOWN)
    assert [row[0].text for row in page.layers.rows] == [layer.name for layer in made.layers]
    assert values(page.layers, "quota") == [layer.quota for layer in made.layers]
    assert values(page.layers, "channels") == [layer.channels for layer in made.layers]
    for bar, layer in zip(page.bars, made.layers, strict=True):
        assert layer.quota is not None
        assert bar.parts[0].width == pytest.approx(100 * layer.quota / layer.channels, abs=1e-3)
        assert bar.total.text == quota_text(made, layer)


def test_page_has_prices_only_where_the_plan_explains_itself() -> None:
    made = example_plan()
    assert made.explanation is not None
    explained = plan_page_of(made, UNKNOWN)
    units = {unit.name: unit for unit in made.explanation.units if unit.what == "channels"}
    assert values(explained.layers, "own") == [units[layer.name].own_bytes for layer in made.layers]
    assert values(explained.layers, "value per kB") == [units[layer.name].last_value_per_kb for layer in made.layers]
    plain = plan_page_of(example_plan(explain=False), UNKNOWN)
    assert (plain.left_out, "own" in plain.layers.columns) == (None, False)
    assert [bar.total.note for bar in plain.bars] == [""] * len(plain.bars)


def test_page_says_what_is_left_out_and_why() -> None:
    made = plan(network(), batch(), 7_000, explain=True)
    assert made.explanation is not None
    table = plan_page_of(made, UNKNOWN).left_out
    assert table is not None
    out = [unit for unit in made.explanation.units if not unit.chosen]
    assert [row[-1].text for row in table.rows] == [unit.sentence for unit in out]


def test_page_leads_with_what_is_trained_the_budget_and_the_status() -> None:
    made = example_plan()
    first, second, third = plan_page_of(made, UNKNOWN).lead
    quotas = sum(layer.quota or 0 for layer in made.layers if not layer.head)
    assert f"{quotas} of the" in first
    assert "the head (10) in full" in first
    assert f"{made.used_bytes:,} B" in second
    assert f"{BUDGET_BYTES - made.used_bytes:,} B below the budget of {BUDGET_BYTES:,} B" in second
    assert "optimal" in third


def test_page_warns_of_what_a_reader_must_know() -> None:
    def warnings(made: Plan) -> str:
        return " ".join(plan_page_of(made, UNKNOWN).warnings)

    made = example_plan()
    assert "no data seen" in warnings(made)
    measured = made.model_copy(update={"importance": made.importance.model_copy(update={"source": "gradients"})})
    assert warnings(measured) == ""
    assert "above the budget" in warnings(measured.model_copy(update={"budget_bytes": made.used_bytes - 1}))
    assert "up to 3.0% more" in warnings(measured.model_copy(update={"status": "feasible", "gap_ratio": 0.03}))
    assert "Scope update" in warnings(example_plan("update"))


def test_budget_bar_is_one_part_where_the_moments_are_not_known() -> None:
    made = example_plan()
    bar = plan_page_of(made, UNKNOWN).budget
    assert [part.cell.value for part in bar.parts] == [made.used_bytes]
    assert bar.budget_at == 100
    assert bar.parts[0].width == pytest.approx(100 * made.used_bytes / made.budget_bytes, abs=1e-3)


def test_budget_bar_of_scope_update_adds_up() -> None:
    made = example_plan("update")
    bar = plan_page_of(made, UNKNOWN).budget
    assert sum(part.cell.value or 0 for part in bar.parts) == made.predicted.update_bytes
    assert bar.parts[0].cell.value == made.predicted.selected_bytes


def test_budget_bar_of_a_plan_above_its_budget_ends_beyond_the_line() -> None:
    made = example_plan().model_copy(update={"budget_bytes": 30_000})
    bar = plan_page_of(made, UNKNOWN).budget
    assert bar.parts[0].width == 100
    assert bar.budget_at == pytest.approx(100 * 30_000 / made.used_bytes, abs=1e-3)


def test_timeline_of_a_plan_peaks_at_what_it_predicts(zoo_plan: Plan, timeline: PlanTimeline) -> None:
    assert timeline.moments is not None
    assert timeline.moments.peak_bytes == zoo_plan.predicted.training_bytes
    assert not {"weights", "activations", "inputs"} & set(timeline.moments.categories)
    page = plan_page_of(zoo_plan, timeline)
    assert sum(part.cell.value or 0 for part in page.budget.parts) == zoo_plan.used_bytes
    assert page.drawing is not None
    assert page.drawing.peak_bytes == zoo_plan.used_bytes
    assert page.drawing.level is not None
    assert page.drawing.level.value == zoo_plan.budget_bytes
    assert sum(part.cell.value or 0 for part in page.drawing.at_peak) == zoo_plan.used_bytes


def test_timeline_of_scope_peak_holds_everything_live(zoo_plan: Plan) -> None:
    figures = zoo_plan.predicted
    whole = timeline_of(zoo_plan.model_copy(update={"scope": "peak"})).moments
    assert whole is not None
    assert whole.peak_bytes == figures.live_peak_bytes
    flash = timeline_of(zoo_plan.model_copy(update={"scope": "peak", "weights_in": "flash"})).moments
    assert flash is not None
    assert "weights" in whole.categories
    assert "weights" not in flash.categories


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"spec": None}, "Python"),
        ({"spec": "evil.py:factory"}, "not evil.py:factory"),
        ({"spec": "os:system"}, "not os:system"),
        ({"spec": "timm:no_such_network"}, "not known"),
        ({"spec": "mbv2-w0.35", "fingerprint": "0" * 64}, "another model"),
        ({"num_classes": 10**15}, "memory"),
    ],
)
def test_timeline_is_left_out_with_a_reason(zoo_plan: Plan, changes: dict[str, object], reason: str) -> None:
    model = zoo_plan.model.model_copy(update=changes)
    found = timeline_of(zoo_plan.model_copy(update={"model": model}))
    assert found.moments is None
    assert reason in found.reason
    html = render_plan_html(zoo_plan.model_copy(update={"model": model}), found)
    assert "Not drawn: " in html
    assert "<path" not in html


def test_a_plan_from_somebody_else_runs_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zoo_plan: Plan
) -> None:
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('ran').touch()\ndef make(): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for spec in ("evil:make", "evil.py:make"):
        model = zoo_plan.model.model_copy(update={"spec": spec})
        page_of(zoo_plan.model_copy(update={"model": model}))
    page_of(zoo_plan.model_copy(update={"loss": "evil:make"}))
    assert not (tmp_path / "ran").exists()


def line_of(totals: list[int]) -> ReportedTimeline:
    count = len(totals)
    return ReportedTimeline(
        categories=("kept_selected", "kept_loss", "indices"),
        phase=("forward",) * (count // 2) + ("backward",) * (count - count // 2),
        operator=tuple(f"op{i}" for i in range(count)),
        module=("",) * count,
        source=("",) * count,
        live_bytes=tuple((total // 2, 0, total - total // 2) for total in totals),
        peak_index=totals.index(max(totals)),
    )


def test_drawing_of_a_long_step_keeps_its_peak() -> None:
    totals = [i % 97 for i in range(5 * MOST_MOMENTS + 7)]
    totals[1234] = 500
    line = line_of(totals)
    shown = drawn_moments(line)
    assert len(shown) == MOST_MOMENTS
    assert 1234 in shown
    assert shown == sorted(set(shown))
    drawn = step_drawing(line, 600, axis_ticks(600))
    assert f"{MOST_MOMENTS} of {len(totals):,} operators" in drawn.moments.caption
    assert len(drawn.moments.rows) == MOST_MOMENTS
    assert max(row[-1].value or 0 for row in drawn.moments.rows) == 500


def test_drawing_stacks_bands_without_gaps() -> None:
    """The lower edge of a band is the upper edge of the one below; an empty category has none."""
    line = line_of([10, 40, 20])
    first, second = step_drawing(line, None, axis_ticks(40)).bands
    assert (first.css, second.css) == ("kept_selected", "indices")
    heights = [[int(y) for y in re.findall(r"V(\d+)", band.path)] for band in (first, second)]
    assert heights[0][:3] == heights[1][3:][::-1]
    assert set(heights[0][3:]) == {SIZE}
    drawn = step_drawing(line, None, axis_ticks(40))
    assert drawn.level is None
    assert [row[-1].value for row in drawn.moments.rows] == [10, 40, 20]
    assert drawn.moments.columns == ("operator", "phase", "kept: selected channels", "channel indices", "all")


def test_render_plan_html_is_deterministic_and_refers_to_nothing_outside(
    timeline: PlanTimeline, zoo_plan: Plan
) -> None:
    again = Plan.from_dict(json.loads(zoo_plan.to_json()))
    html = render_plan_html(zoo_plan, timeline)
    assert html == render_plan_html(again, timeline_of(again))
    assert not re.findall(r"https?://|url\(|@import|<script|<img|\sstyle=|\son\w+=", html)
    assert html.count("<h1>") == 1
    assert "default-src 'none'; style-src 'sha256-" in html


def test_render_plan_html_makes_hostile_names_text() -> None:
    html = render_plan_html(hostile_plan(), UNKNOWN)
    for name in HOSTILE_NAMES:
        assert name not in html
    assert "&lt;script&gt;window.harmed" in html
    assert "{{ 7 * 7 }}" in html
    assert {c for c in html if not c.isprintable()} == {"\n"}
    assert printable(HOSTILE_NAMES[2]) in html


def test_every_kind_names_functions_that_are_there(tmp_path: Path) -> None:
    report = example_report()
    assert set(KINDS) == {"report", "frontier", "plan", "run", "bench"}
    assert "Memory report" in page_of(report)
    for ending in ("html", "png", "svg"):
        written = write_drawn(report, tmp_path / f"r.{ending}", force=False).read_bytes()
        assert written == write_drawn(report, tmp_path / f"again.{ending}", force=False).read_bytes()
    with pytest.raises(InputError, match=r"ends in \.html, \.png, \.svg, got '\.csv'"):
        write_drawn(report, tmp_path / "r.csv", force=False)
    with pytest.raises(InputError, match="exists"):
        write_drawn(report, tmp_path / "r.html", force=False)


@pytest.mark.parametrize("form", ["png", "svg"])
def test_figure_of_a_plan_is_the_same_every_time(tmp_path: Path, form: str) -> None:
    files = [write_drawn(hostile_plan(), tmp_path / f"{i}.{form}", force=True) for i in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_bytes()[:4] == (b"\x89PNG" if form == "png" else b"<?xm")
