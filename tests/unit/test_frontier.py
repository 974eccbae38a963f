"""Value against budget: budgets as text, the curve against brute force, monotone for every strategy, its knee."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import Case, Sketch, random_importance
from simulation import simulate
from torch import nn

import medyate_planner
from medyate_planner.errors import InfeasibleBudgetError, InputError, SolverError
from medyate_planner.memory.model import MemoryModel
from medyate_planner.planning.decision import Decision
from medyate_planner.planning.frontier import knee_index, parse_budgets, trace_frontier
from medyate_planner.planning.plan import ImportanceRef, Sampling
from medyate_planner.planning.recompute import scope_bytes
from medyate_planner.planning.request import PlanRequest, StrategySettings
from medyate_planner.planning.strategies import STRATEGIES, optimal
from medyate_planner.reporting.frontier_export import frontier_csv
from medyate_planner.reporting.frontier_page import drawing_of, frontier_page_of, render_frontier_html
from medyate_planner.reporting.frontier_view import FrontierReport, frontier_report, read_frontier
from medyate_planner.subject import subject_of
from medyate_planner.sweep import plans_of, trace_budgets


def chain(*, channels: int = 2) -> Case:
    """Three convolutions with biases, activations that cost pass-through between them, and a head."""
    sketch = Sketch(batch=2)
    x = sketch.conv(sketch.input(2, 3, 3), channels, name="a", bias=True)
    x = sketch.conv(sketch.unary("keeps_input", x), channels, name="b", bias=True)
    x = sketch.conv(sketch.unary("relu", x), channels, name="c")
    return Case(sketch.build([sketch.linear(sketch.pooled(x), 2, name="head")], head=("head",)), ())


def request_for(case: Case, **options: object) -> PlanRequest:
    settings = {"gap_ratio": 0.0, "budget_bytes": 10**6, **options}
    importance = random_importance(case.graph, 3, zeros=0.0)
    return PlanRequest(memory=MemoryModel(case.graph), importance=importance, magnitudes=importance, **settings)


@pytest.mark.parametrize(
    ("text", "budgets"),
    [
        ("1kB:8kB:4", (1000, 2000, 4000, 8000)),
        ("1B:100B:3", (1, 10, 100)),
        ("1kB:3kB:2", (1000, 3000)),
        ("1MB,64kB,128kB", (64_000, 128_000, 1_000_000)),
        ("64kB, 64000B,1KiB", (1024, 64_000)),
        ("512kB", (512_000,)),
    ],
)
def test_parse_budgets_reads_ranges_and_lists(text: str, budgets: tuple[int, ...]) -> None:
    assert parse_budgets(text) == budgets


def test_parse_budgets_spaces_geometrically_with_exact_ends() -> None:
    budgets = parse_budgets("64kB:2MB:12")
    assert (budgets[0], budgets[-1], len(budgets)) == (64_000, 2_000_000, 12)
    ratio = (2_000_000 / 64_000) ** (1 / 11)
    assert all(two / one == pytest.approx(ratio, rel=1e-4) for one, two in pairwise(budgets))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("64kB:2MB", "three parts"),
        ("64kB:2MB:3:4", "three parts"),
        ("64kB:2MB:many", "'many'"),
        ("64kB:2MB:1", "2 to 1,000"),
        ("64kB:2MB:1001", "2 to 1,000"),
        ("2MB:64kB:3", "rises"),
        ("64kB:64kB:3", "rises"),
        ("1B:3B:5", "only 3 different budgets"),
        ("64:2MB:3", "no unit"),
        ("64kB,", "not an amount"),
        ("", "not an amount"),
        ("64kB,0B", "less than 1 byte"),
    ],
)
def test_parse_budgets_refuses_in_one_line(text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_budgets(text)
    assert words in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("budgets", "values", "knee"),
    [
        (list(range(1, 12)), [min(i, 5) for i in range(11)], 5),  # a kink
        ([1, 10, 100, 1000], [0.0, 0.9, 1.0, 1.0], 2),  # 1 - 99/999 above 0.9 - 9/999
        ([1, 2, 3], [0.0, 1.0, 2.0], None),  # straight
        ([1, 2, 3], [0.0, 0.1, 2.0], None),  # bends the other way
        ([1, 10, 100], [3.0, 3.0, 3.0], None),
        ([1, 10], [0.0, 1.0], None),
        ([], [], None),
    ],
)
def test_knee_index_of_known_curves(budgets: list[int], values: list[float], knee: int | None) -> None:
    assert knee_index(budgets, values) == knee


def test_knee_index_of_a_saturating_curve_is_where_its_slope_is_that_of_the_chord() -> None:
    """y = 1 - exp(-t) for t in 0..4: the slope exp(-t) equals the chord's (1 - exp(-4)) / 4."""
    ts = np.linspace(0, 4, 401)
    knee = knee_index([1000 + round(100 * t) for t in ts], [1 - math.exp(-t) for t in ts])
    assert knee is not None
    assert ts[knee] == pytest.approx(math.log(4 / (1 - math.exp(-4))), abs=0.01)


@pytest.mark.parametrize("objective", ["projection", "norm"])
@pytest.mark.parametrize("scope", ["training", "update"])
def test_frontier_equals_brute_force(scope: str, objective: str) -> None:
    """Two channels a layer: every quota is a breakpoint, so the solver sees the exact values."""
    case = chain()
    request = request_for(case, scope=scope, objective=objective)
    gain = {"projection": lambda n, mean: n / 2 * math.sqrt(2 * mean), "norm": lambda n, mean: math.sqrt(n * mean)}
    units = {unit.name: unit for unit in case.graph.units}
    weights = {name: math.prod(unit.weight_shape) // 2 for name, unit in units.items()}
    options = []
    for quotas in product(range(3), repeat=3):
        for biases in product([False, True], repeat=2):
            named = dict(zip("abc", quotas, strict=True))
            chosen = frozenset(name for name, bit in zip("ab", biases, strict=True) if bit)
            if any(quotas) or chosen:
                step = simulate(case.graph, named, chosen, case.graph.head)
                price = step.update if scope == "update" else step.training
                energy = request.importance.energy
                worth = sum(weights[k] * gain[objective](n, float(energy[k].mean())) for k, n in named.items())
                worth += sum(
                    units[name].weight_shape[0] * math.sqrt(request.importance.bias_energy[name]) for name in chosen
                )
                options.append((price, worth))
    prices = sorted({price for price, _ in options})
    frontier = trace_frontier(request, [prices[0] - 1, *prices], optimal)
    assert frontier.minimum_bytes == prices[0]
    assert [point.feasible for point in frontier.points] == [False] + [True] * len(prices)
    for point in frontier.feasible:
        best = max(worth for price, worth in options if price <= point.budget_bytes)
        assert point.objective == pytest.approx(best, rel=3e-6)
        assert point.used_bytes is not None
        assert point.used_bytes <= point.budget_bytes


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "sparse-update"])  # needs a scheme
def test_frontier_of_every_strategy_never_falls(strategy: str) -> None:
    settings = StrategySettings(intervals=2, population=6, generations=3)
    request = request_for(chain(channels=6), settings=settings)
    frontier = trace_frontier(request, parse_budgets("300B:4kB:9"), STRATEGIES[strategy])
    objectives = [point.objective or 0.0 for point in frontier.feasible]
    assert objectives == sorted(objectives)
    assert frontier.strategy == strategy
    for point in frontier.feasible:
        assert point.decision is not None
        assert point.objective == request.value(point.decision.updates)
        assert point.used_bytes == max(scope_bytes(request, each) for each in point.decision.all_updates)
        assert point.used_bytes <= point.budget_bytes
    if frontier.minimum_bytes is not None:
        assert all(point.feasible == (point.budget_bytes >= frontier.minimum_bytes) for point in frontier.points)


def test_frontier_states_the_marginal_value_per_kb() -> None:
    frontier = trace_frontier(request_for(chain(channels=6)), [100, 1000, 2000, 4000], optimal)
    points = frontier.feasible
    assert points[0].marginal_per_kb is None
    for one, two in pairwise(points):
        assert one.objective is not None
        assert two.objective is not None
        gained = (two.objective - one.objective) / ((two.budget_bytes - one.budget_bytes) / 1000)
        assert two.marginal_per_kb == pytest.approx(gained)


def test_frontier_keeps_an_earlier_plan_that_is_worth_more() -> None:
    request = request_for(chain())
    good, poor = request.updates({"a": 2, "c": 2}), request.updates({"c": 1})

    def fickle(asked: PlanRequest) -> Decision:
        if asked.budget_bytes == 1000:
            return Decision(updates=good, strategy="fickle", status="optimal", bound=request.value(good))
        return Decision(updates=poor, strategy="fickle", status="optimal", bound=2 * request.value(good))

    frontier = trace_frontier(request, [1000, 2000, 3000], fickle)
    first, *later = frontier.points
    assert (first.status, first.carried_from_bytes) == ("optimal", None)
    for point in later:
        assert point.carried_from_bytes == 1000
        assert point.status == "feasible"
        assert point.objective == first.objective
        assert point.marginal_per_kb == 0.0
        assert point.gap_ratio == pytest.approx(1 - request.interpolated_value(good) / (2 * request.value(good)))


def test_frontier_forgives_a_solver_that_runs_out_of_time_after_a_plan() -> None:
    request = request_for(chain())

    def slow(asked: PlanRequest) -> Decision:
        if asked.budget_bytes > 1000:
            raise SolverError("the time limit passed")
        return optimal(asked)

    frontier = trace_frontier(request, [1000, 2000], slow)
    assert (frontier.points[1].status, frontier.points[1].gap_ratio) == ("feasible", 1.0)
    assert frontier.points[1].objective == frontier.points[0].objective
    with pytest.raises(SolverError):
        trace_frontier(request, [2000], slow)


def test_frontier_minimum_is_exact_also_where_every_budget_can_be_met() -> None:
    request = request_for(chain())
    minimum = trace_frontier(request, [2000, 4000], optimal).minimum_bytes
    assert minimum is not None
    optimal(replace(request, budget_bytes=minimum))
    with pytest.raises(InfeasibleBudgetError):
        optimal(replace(request, budget_bytes=minimum - 1))
    with pytest.raises(InfeasibleBudgetError) as caught:
        trace_frontier(request, [1, minimum - 1], optimal)
    assert caught.value.minimum_bytes == minimum


def report_of(**options: object) -> FrontierReport:
    frontier = trace_frontier(request_for(chain(channels=6), **options), parse_budgets("100B:40kB:9"), optimal)
    return frontier_report(
        frontier, spec="a<b>&\x1b[2J", device="cpu", loss="mse", reference=ImportanceRef(source="<script>x</script>")
    )


def test_report_round_trip_is_the_identity() -> None:
    made = report_of()
    assert made.knee_bytes is not None
    assert not made.points[0].feasible
    assert read_frontier(json.loads(json.dumps(made.to_dict(), allow_nan=False)), where="here") == made
    assert "knee" in str(made)
    assert "\x1b" not in str(made)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("schema_version",), 2, "schema_version"),
        (("points",), [], "points"),
        (("points", 1, "budget_bytes"), 1, "rise"),
        (("points", 1, "objective"), None, "all figures"),
        (("points", 0, "feasible"), True, "all figures"),
        (("knee_bytes",), 7, "knee"),
        (("colour",), "red", "colour"),
    ],
)
def test_read_frontier_names_what_is_wrong(path: tuple[object, ...], value: object, words: str) -> None:
    data = report_of().to_dict()
    place = data
    for key in path[:-1]:
        place = place[key]  # type: ignore[index]
    place[path[-1]] = value  # type: ignore[index]
    with pytest.raises(InputError, match=words) as caught:
        read_frontier(data, where="here")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("ending", [".json", ".csv", ".png", ".svg", ".html"])
def test_the_same_frontier_gives_the_same_file(tmp_path: Path, ending: str) -> None:
    made = [report_of().save(tmp_path / f"{name}{ending}").read_bytes() for name in "ab"]
    assert made[0] == made[1]
    with pytest.raises(InputError, match="--force"):
        report_of().save(tmp_path / f"a{ending}", force=False)


def test_csv_has_every_point() -> None:
    made = report_of()
    rows = list(csv.DictReader(io.StringIO(frontier_csv(made))))
    assert [int(row["budget_bytes"]) for row in rows] == [point.budget_bytes for point in made.points]
    assert [row["knee"] for row in rows].count("True") == 1
    for row, point in zip(rows, made.points, strict=True):
        assert row["objective"] == ("" if point.objective is None else str(point.objective))


def test_page_is_self_contained_and_escaped() -> None:
    text = render_frontier_html(report_of())
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert "a&lt;b&gt;&amp;" in text
    assert "\x1b" not in text
    assert " style=" not in text


def test_page_shows_the_reports_numbers() -> None:
    made = report_of()
    page = frontier_page_of(made)
    assert [row[0].value for row in page.points.rows] == [point.budget_bytes for point in made.points]
    assert [row[2].value for row in page.points.rows] == [point.objective for point in made.points]
    drawn = drawing_of(made)
    assert [dot.budget_bytes for dot in drawn.dots if dot.knee] == [made.knee_bytes]
    heights = [dot.y for dot in drawn.dots]
    assert heights == sorted(heights, reverse=True)
    assert all(0 <= place <= 100 for dot in drawn.dots for place in (dot.x, dot.y))
    assert {mark.css for mark in drawn.marks} == {"minimum", "knee"}


@pytest.mark.parametrize("budgets", ["4kB", "1B:4kB:2", "3999B,4kB", "1kB:1GB:10"])
def test_page_of_any_number_of_points_can_be_drawn(budgets: str) -> None:
    frontier = trace_frontier(request_for(chain()), parse_budgets(budgets), optimal)
    made = frontier_report(frontier, spec=None, device="cpu", loss="mse", reference=ImportanceRef(source="x"))
    assert len(drawing_of(made).x_ticks) >= 1
    assert "svg" in render_frontier_html(made)


def test_frontier_of_a_strategy_that_is_worth_nothing_can_be_drawn() -> None:
    frontier = trace_frontier(request_for(chain()), parse_budgets("1kB:4kB:3"), STRATEGIES["head-only"])
    made = frontier_report(frontier, spec=None, device="cpu", loss="mse", reference=ImportanceRef(source="x"))
    assert made.knee_bytes is None
    assert "svg" in render_frontier_html(made)


class Net(nn.Module):
    """Two convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(x).mean((2, 3)))


def test_public_frontier_and_its_plans_agree() -> None:
    model, x = Net(), torch.zeros(2, 3, 8, 8)
    made = medyate_planner.frontier(model, x, ["100B", 3000, "9kB"], spec="net")
    assert [point.feasible for point in made.points] == [False, True, True]
    subject = subject_of(model, x)
    traced = trace_budgets(subject, "3kB,9kB")
    plans = list(plans_of(subject, traced, Sampling(), {}, ImportanceRef(source="x")))
    for plan, point in zip(plans, made.feasible, strict=True):
        alone = medyate_planner.plan(model, x, point.budget_bytes)
        assert plan.budget_bytes == point.budget_bytes
        assert plan.used_bytes == alone.used_bytes == point.used_bytes
        assert plan.objective == alone.objective == point.objective
        assert sum(plan.quotas().values()) == point.channels


def test_frontier_of_draws_by_importance_needs_importance() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    with pytest.raises(InputError, match="medyate draws by the importance"):
        medyate_planner.frontier(model, torch.zeros(2, 4), ["1kB", "2kB"], strategy="medyate")
