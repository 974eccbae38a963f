"""What a benchmark's report says: verdicts, shares and likeness against numbers worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from bench_results import FACTS, MATRIX, MEANS, results

from medyate_planner.bench.agreement import agreements, stability
from medyate_planner.bench.analysis import Comparison, standings
from medyate_planner.bench.claims import findings
from medyate_planner.bench.headlines import headline_figures
from medyate_planner.bench.matrix import Matrix
from medyate_planner.bench.records import Records
from medyate_planner.bench.report import document_of
from medyate_planner.bench.tables import comparisons_table, overview_table, pair_tables, verdicts_table
from medyate_planner.bench.watching import spearman
from medyate_planner.reporting.document import render_document_html, render_document_markdown, write_document
from medyate_planner.reporting.scatter import Chart, Point, Series


def test_verdicts_are_those_of_the_rule() -> None:
    better, worse, same, apart, head, nothing = findings(MATRIX, results())
    assert [f.verdict for f in (better, worse)] == ["holds", "does not hold"]
    assert better.p is not None
    assert better.p < 0.05
    assert better.comparison is not None
    assert better.comparison.mean_difference == pytest.approx(0.1, abs=0.01)
    assert (same.verdict, apart.verdict, head.verdict) == ("holds", "does not hold", "does not hold")
    assert (nothing.verdict, nothing.comparison) == ("no data", None)  # they share no budget


def test_too_little_is_not_shown() -> None:
    noisy = [run for run in results() if run["contender"] in ("a", "b") and run["seed"] == 0]
    for sign, run in zip((1, -1, 1, -1, -1, 1, -1, 1), noisy, strict=True):
        run["accuracy"] = 0.5 + 0.2 * sign
    verdicts = {(f.claim.expect, f.first, f.second): f.verdict for f in findings(MATRIX, noisy)}
    assert verdicts["better", "a", "b"] == verdicts["same", "a", "b"] == "not shown"


def test_the_interval_is_students() -> None:
    """Differences 0.1 and 0.2: mean 0.15, standard error 0.05, t of 95 % with one degree of freedom 6.3138."""
    runs = [run for run in results() if run["contender"] in ("a", "b") and run["seed"] == 0 and run["budget"] == "1%"]
    for run, accuracy in zip(runs, (0.6, 0.7, 0.5, 0.5), strict=True):
        run["accuracy"] = accuracy
    found = findings(MATRIX, runs)[0].comparison
    assert isinstance(found, Comparison)
    assert found.interval == pytest.approx((0.15 - 6.3138 * 0.05, 0.15 + 6.3138 * 0.05), abs=1e-4)


def test_a_pair_is_a_network_a_task_and_a_seed() -> None:
    """Whatever the number of budgets: what shares the weights that a run starts from and its data counts once."""
    matrix = Matrix.model_validate({**FACTS, "claims": [{"text": "x", "pairs": [["full", "head"], ["full", "a"]]}]})
    runs = results()
    for run in runs:
        run["accuracy"] = {"full": 0.8, "head": 0.5, "a": {"1%": 0.6, "2%": 0.8}.get(run["budget"])}.get(
            run["contender"], 0.1
        )
    once, each = findings(matrix, runs)
    assert once.comparison is not None
    assert (once.comparison.pairs, once.comparison.mean_difference) == (2 * 3, pytest.approx(0.3))
    assert each.comparison is not None
    assert (each.comparison.pairs, each.comparison.mean_difference) == (2 * 3, pytest.approx((0.2 + 0.0) / 2))


def test_headlines_are_shares_of_full_fine_tuning() -> None:
    runs = results()
    first, second = headline_figures(MATRIX, runs)
    by_task = []
    for task in ("t", "u"):
        here = [run for run in runs if run["task"] == task]
        own = [run["accuracy"] for run in here if (run["contender"], run["budget"]) == ("a", "1%")]
        full = [run["accuracy"] for run in here if run["contender"] == "full"]
        by_task.append(sum(own) / sum(full))
    assert [pair.share for pair in first.pairs] == pytest.approx(by_task)
    assert first.share == pytest.approx(sum(by_task) / 2)
    assert first.memory_ratio == 0.01
    assert (first.reached, second.reached) == (True, False)
    assert [name for name, _ in first.others] == ["b", "once", "head"]  # the others take more, or another budget


def test_standings_know_time_coverage_and_failures() -> None:
    runs = results()
    runs[0].update(accuracy=None, failure="no room")
    found = {(entry.contender, entry.budget): entry for entry in standings(MATRIX, runs)}
    entry = found["a", "1%"]
    assert (entry.cells, entry.failed, entry.coverage) == (5, 1, 0.25)
    assert entry.time_ratio == pytest.approx(0.25)


def test_likeness_is_averaged_over_runs() -> None:
    followed = [run for run in results() if run["contender"] == "again"][:2]
    for run, rho in zip(followed, (0.8, 0.6), strict=True):
        entry = {"layers": rho, "channels": None, "best": rho}
        run["stability"] = {"again": {"layers": 1.0, "channels": 1.0, "best": 1.0}, "epochs": [entry, entry]}
    (found,) = stability(followed)
    assert (found.contender, found.runs, len(found.epochs)) == ("again", 2, 2)
    assert found.epochs[0] == {"layers": pytest.approx(0.7), "best": pytest.approx(0.7)}


def test_spearman_of_ranks_by_hand() -> None:
    """1 - 6 sum d² / (n (n² - 1)) without ties."""
    one, other = [0.1, 5.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]
    d_squared = (1 - 1) ** 2 + (4 - 2) ** 2 + (2 - 3) ** 2 + (3 - 4) ** 2
    assert spearman(one, other) == pytest.approx(1 - 6 * d_squared / (4 * 15))
    assert spearman([1.0, 1.0], [1.0, 2.0]) is None


def test_rankings_are_compared_between_and_within_data_sets() -> None:
    def rank(task: str, seed: int, *scores: float) -> dict[str, Any]:
        return {"network": "n", "task": task, "seed": seed, "layers": {"lara": dict(zip("xyz", scores, strict=True))}}

    ranks = [rank("t", 0, 3, 2, 1), rank("t", 1, 3, 2, 1), rank("u", 0, 1, 2, 3)]
    found = {entry.tasks: (entry.spearman, entry.lowest, entry.pairs) for entry in agreements(ranks)}
    assert found == {("t", "t"): (1.0, 1.0, 1), ("t", "u"): (-1.0, -1.0, 2)}


def test_a_pair_is_shown_from_either_side() -> None:
    facts: dict[str, Any] = {"pairs": 3, "interval": (0, 0), "t_p": 0.1, "wilcoxon_p": 0.1, "wins": 2, "losses": 1}
    found = [
        Comparison(first="a", second="b", mean_difference=0.1, **facts),
        Comparison(first="c", second="a", mean_difference=0.2, **facts),
        Comparison(first="b", second="c", mean_difference=0.3, **facts),
    ]
    rows = comparisons_table(found, "a").rows
    assert [[cell.text for cell in row[:5]] for row in rows] == [
        ["b", "3", "+0.1000", "2", "1"],
        ["c", "3", "-0.2000", "1", "2"],
    ]


def test_the_overview_is_the_standings_by_budget() -> None:
    """Eight of full fine-tuning's 0.84 and so on; ordered by the budget at which most were run."""
    runs = [run for run in results() if run["contender"] != "again"]
    table = overview_table(standings(MATRIX, runs))
    assert table.columns == ("contender", "1% (1.00%)", "2% (2.00%)", "without a budget")
    assert [row[0].text for row in table.rows] == ["a", "b", "eight", "four", "once", "head", "full"]
    shares = {row[0].text: [cell.value for cell in row[1:]] for row in table.rows}
    for name, found in shares.items():
        expected = [(MEANS[name] - 0.005) / (MEANS["full"] - 0.005)] * 2 + [None]
        places = {"a": (0, 1), "b": (0, 1), "once": (0,), "head": (), "full": ()}.get(name, (1,))
        whole = name in ("head", "full")
        assert [value is not None for value in found] == [0 in places, 1 in places, whole]
        assert all(v == pytest.approx(expected[0], abs=2e-3) for v in found if v is not None)
    notes = {row[0].text: [cell.note for cell in row[1:]] for row in table.rows}
    assert notes["a"] == ["highest", "highest", ""]
    assert notes["once"] == ["2 runs", "", ""]
    assert notes["full"] == ["", "", "in 100.00%"]


def test_a_contender_with_fewer_runs_is_not_called_the_highest() -> None:
    runs = [run for run in results() if run["contender"] != "a" or run["seed"] == 0]
    notes = {row[0].text: row[2].note for row in overview_table(standings(MATRIX, runs)).rows}
    assert (notes["a"], notes["b"]) == ("2 runs", "highest")


def test_verdicts_are_counted_claim_by_claim() -> None:
    table = verdicts_table(findings(MATRIX, results()))
    assert table.columns == ("claim", "pairs", "holds", "does not hold", "not shown", "no data")
    assert [[row[0].text, *(cell.value for cell in row[1:])] for row in table.rows] == [
        ["a is better", 2, 1, 1, 0, 0], ["a is the same", 3, 1, 2, 0, 0], ["once is better", 1, 0, 0, 0, 1],
    ]  # fmt: skip


def test_what_failed_says_why() -> None:
    runs = [{**run, "accuracy": None, "failure": "no room"} if run["contender"] == "b" else run for run in results()]
    rows = {(row[0].text, row[1].text): row for row in pair_tables(MATRIX, runs)[0].rows}
    assert rows["b", "1%"][0].note == "no room"
    assert rows["a", "1%"][0].note == ""


@pytest.mark.parametrize(
    ("places", "ticks"),
    [
        ((4, 8, 32), ["4", "8", "32"]),
        ((0.004, 0.01, 1.0), ["0.003", "0.01", "0.03", "0.1", "0.3", "1"]),
        (range(1, 30), ["1", "2", "5", "10", "20"]),
    ],
)
def test_ticks_stand_at_few_whole_numbers_or_at_round_ones(places: Sequence[float], ticks: list[str]) -> None:
    points = tuple(Point(x=x, y=index, text="") for index, x in enumerate(places))
    chart = Chart(id="c", caption="", x_name="", y_name="", series=(Series(name="s", points=points),), x_log=True)
    assert [tick.text for tick in chart.x_ticks] == ticks
    assert all(0 <= tick.at <= 100 for tick in (*chart.x_ticks, *chart.y_ticks))
    assert all(10 < x <= 100 for x, _, _ in chart.drawn[0].dots)  # in front are the labels


@pytest.fixture
def records(tmp_path: Path) -> Records:
    lines = [json.dumps(run) for run in results()]
    (tmp_path / "results.jsonl").write_text("\n".join(lines) + "\n")
    return Records(tmp_path)


def test_the_report_is_made_of_what_is_there(records: Records, tmp_path: Path) -> None:
    document = document_of(MATRIX, records, command="medyate bench m.toml")
    titles = [section.title for section in document.sections]
    assert titles[:3] == ["How near to full fine-tuning", "Accuracy against memory", "What others found"]
    assert document.lead[1].startswith("a with budget 1% reaches 95.")
    assert {"What others found", "How many layers to draw from", "a against the others"} <= set(titles)
    assert "56 of 56" in document.lead[0]
    empty = document_of(MATRIX, Records(tmp_path / "none"), command="medyate bench m.toml")
    assert [section.title for section in empty.sections] == ["What others found"]
    assert "0 of 56" in empty.lead[0]


def test_names_are_text_in_page_and_markdown(records: Records) -> None:
    document = document_of(MATRIX, records, command="medyate bench m.toml")
    page = render_document_html(document)
    assert "<img" not in page
    assert "&lt;img" in page
    assert page == render_document_html(document)
    text = render_document_markdown(document, figures=True)
    assert "<img" not in text.replace("\\<img", "")
    assert "![" in text
    assert "![" not in render_document_markdown(document, figures=False)


def test_figures_lie_beside_the_markdown_that_names_them(records: Records, tmp_path: Path) -> None:
    document = document_of(MATRIX, records, command="medyate bench m.toml")
    first = {path.name: path.read_bytes() for path in write_document(document, tmp_path / "one", figures=True)}
    second = {path.name: path.read_bytes() for path in write_document(document, tmp_path / "two", figures=True)}
    assert first == second
    named = [name for name in first if name.endswith(".png")]
    assert len(named) == 3
    assert all(f"]({name})" in first["report.md"].decode() for name in named)
