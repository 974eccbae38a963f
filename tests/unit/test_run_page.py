"""A run as data and as a page: the folder's numbers, honest counts of draws, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from example_report import HOSTILE_NAMES
from example_run import BUDGET_BYTES, EPOCHS, WIDE, example_plan, hostile_run, write_run

from medyate_planner import InputError
from medyate_planner.reporting.chart import ChartWords, Curve, line_chart, value_ticks
from medyate_planner.reporting.kinds import write_drawn
from medyate_planner.reporting.run_draws import (
    LEVELS,
    MOST_COLUMNS,
    LayerDraws,
    draws_table,
    heat_map,
    layer_draws,
    level_of,
    runs_of,
)
from medyate_planner.reporting.run_page import render_run_html, run_page_of
from medyate_planner.reporting.run_view import RunView, read_run


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "run"))


@pytest.fixture(scope="module")
def run(written: Path) -> RunView:
    return read_run(written)


def json_lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_read_run_holds_what_the_folder_holds(written: Path, run: RunView) -> None:
    assert run.plan == example_plan()
    assert [dict(line) for line in run.metrics] == json_lines(written / "metrics.jsonl")
    assert [epoch.epoch for epoch in run.epochs] == list(range(EPOCHS))
    drawn = [{name: list(channels) for name, channels in draw.layers.items()} for draw in run.draws]
    assert drawn == [line["layers"] for line in json_lines(written / "selections.jsonl")]
    assert run.planned_epochs == EPOCHS
    assert run.to_dict().keys() == {"kind", "plan", "metrics"}


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("metrics.jsonl", '{"epoch": 0}', ("metrics.jsonl", "line 4", "train_loss")),
        ("metrics.jsonl", '{"epoch": -1}', ("line 4", "epoch")),
        ("selections.jsonl", '{"epoch": 3, "layers": {"nobody": [1]}}', ("line 4", "nobody", "not in the plan")),
        ("selections.jsonl", '{"epoch": 3, "layers": {"0": [3]}}', ("0 to 2", "got 3 to 3")),
        ("selections.jsonl", '{"epoch": 3, "layers": {"0": ["x"]}}', ("line 4", "layers.0")),
    ],
)
def test_read_run_refuses_what_a_run_does_not_write(folder: Path, file: str, line: str, words: tuple[str, ...]) -> None:
    with (folder / file).open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(InputError) as caught:
        read_run(folder)
    assert all(word in caught.value.message for word in words)


def test_read_run_leaves_out_what_a_kill_cut_off(folder: Path, run: RunView) -> None:
    for file in ("metrics.jsonl", "selections.jsonl"):
        with (folder / file).open("a") as stream:
            stream.write('{"epoch": 3, "tra')
    assert read_run(folder).epochs == run.epochs
    assert read_run(folder).draws == run.draws


def test_read_run_needs_no_more_than_plan_and_metrics(folder: Path) -> None:
    for name in ("selections.jsonl", "recipe.json"):
        (folder / name).unlink()
    found = read_run(folder)
    assert (found.draws, found.planned_epochs) == ((), None)
    page = run_page_of(found)
    assert (page.heat.rows, page.draws.rows) == ((), ())
    assert "selections.jsonl" in " ".join(page.warnings)
    assert 'id="channels"' not in render_run_html(found)
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match="no such file"):
        read_run(folder)


def test_page_shows_the_numbers_of_every_epoch(run: RunView) -> None:
    table = run_page_of(run).epochs
    keys = ("train_loss", "test_accuracy", "test_loss", "measured_training_bytes", "measured_saved_bytes",
            "measured_live_peak_bytes", "lr", "seconds")  # fmt: skip
    for row, line in zip(table.rows, run.metrics, strict=True):
        assert row[0].text == str(line["epoch"])
        assert [cell.value for cell in row[1:]] == [line[key] for key in keys]


def test_page_draws_every_epoch_and_the_budget(run: RunView) -> None:
    page = run_page_of(run)
    loss, accuracy, seconds = page.learning
    assert [[point.value for point in series.points] for series in loss.series] == [
        [epoch.train_loss for epoch in run.epochs],
        [epoch.test_loss for epoch in run.epochs],
    ]
    assert [point.value for point in accuracy.series[0].points] == [epoch.test_accuracy for epoch in run.epochs]
    assert [point.value for point in seconds.series[0].points] == [epoch.seconds for epoch in run.epochs]
    training, live = page.memory
    assert training.level is not None
    assert training.level.value == BUDGET_BYTES
    assert live.level is None
    measured = training.series[0].points[0]
    assert measured.value == run.epochs[0].measured_training_bytes <= BUDGET_BYTES
    assert measured.y >= training.level.y


def test_page_says_what_was_held_against_the_budget(run: RunView) -> None:
    most = max(epoch.measured_training_bytes for epoch in run.epochs)
    lead = run_page_of(run).lead
    assert f"{BUDGET_BYTES - most:,} B below the budget of {BUDGET_BYTES:,} B" in lead[1]
    assert lead[0].startswith(f"After {EPOCHS} epochs: train loss {run.epochs[-1].train_loss:.4f}")
    assert run_page_of(run).warnings == ()
    low = RunView(
        plan=run.plan.model_copy(update={"budget_bytes": most - 1}),
        epochs=run.epochs,
        draws=run.draws,
        settings={"recipe": {"epochs": 9}},
    )
    page = run_page_of(low)
    assert "1 B above the budget" in page.lead[1]
    assert page.warnings == (
        f"Measured above the budget in {EPOCHS} epochs.",
        f"The run is not finished: {EPOCHS} of 9 epochs are done.",
    )
    assert [row[4].alert for row in page.epochs.rows] == [True] * EPOCHS


def test_page_measures_scope_peak_without_the_weights_in_flash(run: RunView) -> None:
    predicted = run.plan.predicted.model_copy(update={"weights_in_flash_bytes": 1000})
    plan = run.plan.model_copy(
        update={"scope": "peak", "weights_in": "flash", "predicted": predicted, "budget_bytes": 400_000}
    )
    page = run_page_of(RunView(plan=plan, epochs=run.epochs, draws=run.draws))
    most = max(epoch.measured_live_peak_bytes for epoch in run.epochs) - 1000
    assert f"{400_000 - most:,} B below" in page.lead[1]
    assert page.memory[0].level is None
    assert page.memory[1].level is not None
    assert page.memory[1].level.value == 401_000
    update = RunView(plan=run.plan.model_copy(update={"scope": "update"}), epochs=run.epochs, draws=run.draws)
    assert "not measured" in run_page_of(update).lead[1]
    assert [chart.level for chart in run_page_of(update).memory] == [None, None]


def test_page_of_a_run_that_has_just_begun(run: RunView) -> None:
    page = run_page_of(RunView(plan=run.plan, epochs=(), draws=()))
    assert page.lead == ("No epoch is done yet.",)
    assert (page.learning, page.memory, page.measured) == ((), (), None)


def test_layer_draws_count_every_channel(run: RunView) -> None:
    layers = layer_draws(run)
    assert [layer.name for layer in layers] == [layer.name for layer in run.plan.layers if not layer.head]
    for layer in layers:
        for channel, count in enumerate(layer.counts):
            assert count == sum(channel in draw.layers[layer.name] for draw in run.draws)
        seen = {channel for draw in run.draws for channel in draw.layers[layer.name]}
        assert layer.covered == len(seen)
    assert sum(sum(layer.counts) for layer in layers) == sum(len(c) for d in run.draws for c in d.layers.values())


def layer_of(counts: list[int], draws: int) -> LayerDraws:
    return LayerDraws(name="x", kind="conv", draws=draws, counts=tuple(counts))


@pytest.mark.parametrize("channels", [1, 3, MOST_COLUMNS, MOST_COLUMNS + 1, 3 * MOST_COLUMNS + 5, 5000])
def test_columns_hold_every_channel_once_and_are_few(channels: int) -> None:
    layer = layer_of([i % 5 for i in range(channels)], 4)
    assert [c for start, end in layer.columns for c in range(start, end)] == list(range(channels))
    assert len(layer.columns) <= MOST_COLUMNS
    if channels <= MOST_COLUMNS:
        assert layer.means == tuple(map(float, layer.counts))
    total = sum(mean * (end - start) for mean, (start, end) in zip(layer.means, layer.columns, strict=True))
    assert total == pytest.approx(sum(layer.counts))


@pytest.mark.parametrize("draws", [1, 3, 8, 50])
def test_levels_tell_never_and_always_from_all_else(draws: int) -> None:
    levels = [level_of(count, draws) for count in range(draws + 1)]
    assert levels[0] == 0
    assert levels[-1] == LEVELS
    assert levels == sorted(levels)
    assert min(levels[1:]) >= 1
    assert len(set(levels)) == min(draws, LEVELS) + 1
    assert level_of(0.001, draws) == 1


def test_heat_map_strips_are_whole_and_say_how_channels_are_binned(run: RunView) -> None:
    layers = layer_draws(run)
    found = heat_map(layers)
    for row, layer in zip(found.rows, layers, strict=True):
        assert row.total.value == layer.covered
        ends = [cell.start + cell.width for cell in row.cells]
        assert row.cells[0].start == 0
        assert ends == pytest.approx([*(cell.start for cell in row.cells[1:]), 100], abs=0.01)
    assert WIDE > MOST_COLUMNS
    assert "in 1 layer of more than 96 channels it is 2 neighbours" in found.note
    narrow = heat_map([layer for layer in layers if len(layer.counts) <= MOST_COLUMNS])
    assert narrow.note.endswith("One column is one channel.")
    assert [css for css, _ in found.legend] == [f"h{level_of(count, EPOCHS)}" for count in range(EPOCHS + 1)]
    assert len(heat_map([layer_of([50, 0], 50)]).legend) == LEVELS + 1


def test_draws_table_holds_the_count_of_every_channel(run: RunView) -> None:
    for row, layer in zip(draws_table(layer_draws(run)).rows, layer_draws(run), strict=True):
        told: list[int] = []
        for part in row[-1].text.split():
            count, _, times = part.partition("×")
            told += [int(count)] * int(times or 1)
        assert tuple(told) == layer.counts
        assert row[3].value == layer.covered
    assert runs_of([2, 0, 0, 1, 1, 1]) == "2 0 0 1×3"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0), (0.95, 0.99), (5, 5), (0, 8.7e6), (-3, 2), (1e-9, 2e-9)])
def test_value_ticks_are_few_and_reach_below_the_lowest(low: float, high: float) -> None:
    ticks = value_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low + 1e-12
    assert list(ticks) == sorted(set(ticks))


def test_line_chart_leaves_out_what_is_not_known() -> None:
    words = ChartWords(id="x", title="X", x_name="epoch", text=str)
    assert line_chart(words, [0, 1], [Curve(name="a", css="c", values=[None, None])]) is None
    chart = line_chart(words, [4], [Curve(name="a", css="c", values=[2.0]), Curve(name="b", css="c", values=[None])])
    assert chart is not None
    assert [series.name for series in chart.series] == ["a"]
    assert [tick.text for tick in chart.x_ticks] == ["4"]
    many = line_chart(words, list(range(300)), [Curve(name="a", css="c", values=[float(i) for i in range(300)])])
    assert many is not None
    assert len(many.x_ticks) <= 7
    places = [place for point in many.series[0].points for place in (point.x, point.y)]
    assert all(0 <= place <= 100 for place in places)


def test_render_run_html_is_deterministic_and_refers_to_nothing_outside(written: Path, run: RunView) -> None:
    html = render_run_html(run)
    assert html == render_run_html(read_run(written))
    assert not re.findall(r"https?://|url\(|@import|<script|<img|\sstyle=|\son\w+=", html)
    assert "default-src 'none'; style-src 'sha256-" in html


def test_render_run_html_makes_hostile_names_text(tmp_path: Path) -> None:
    html = render_run_html(hostile_run(tmp_path / "run"))
    for name in HOSTILE_NAMES:
        assert name not in html
    assert {c for c in html if not c.isprintable()} == {"\n"}


@pytest.mark.parametrize("form", ["png", "svg"])
def test_figure_of_a_run_is_the_same_every_time(run: RunView, tmp_path: Path, form: str) -> None:
    files = [write_drawn(run, tmp_path / f"{i}.{form}", force=True) for i in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()
    begun = RunView(plan=run.plan, epochs=(), draws=())
    with pytest.raises(InputError, match="no epoch yet"):
        write_drawn(begun, tmp_path / f"begun.{form}", force=True)
    assert not (tmp_path / f"begun.{form}").exists()
