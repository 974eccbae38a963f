"""Comparisons of contenders: against numbers worked out by hand, permutations and tables of the tests."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medyate_planner.bench.analysis import by_place, compare, holm, standings
from medyate_planner.bench.matrix import Matrix

MATRIX = Matrix.model_validate(
    {
        "name": "paper",
        "seeds": [0, 1],
        "networks": [{"name": "n", "spec": "n"}],
        "tasks": [{"name": "t", "data": "d", "epochs": 1}, {"name": "u", "data": "d", "epochs": 1}],
        "budgets": [{"name": "small", "amount": "1kB"}, {"name": "large", "amount": "2kB"}],
        "contenders": [
            {"name": "a"}, {"name": "b"}, {"name": "head", "strategy": "head-only"},
            {"name": "full", "kind": "full", "family": "full"},
        ],
        "families": {
            "planned": {"rates": [0.1], "chosen_by": "a", "budget": "small"},
            "full": {"rates": [0.1], "chosen_by": "full"},
        },
    }
)  # fmt: skip


def run(contender: str, accuracy: float, *, task: str = "t", budget: str | None = None, seed: int = 0) -> Any:
    return {
        "contender": contender, "accuracy": accuracy, "network": "n", "task": task, "budget": budget, "seed": seed,
        "training_bytes": 1000 if contender == "full" else 10,
    }  # fmt: skip


def planned(contender: str, *accuracies: float) -> list[Any]:
    places = itertools.product(("t", "u"), range(4))
    return [run(contender, x, task=t, budget="small", seed=s) for x, (t, s) in zip(accuracies, places, strict=True)]


def test_without_a_budget_a_result_stands_at_each() -> None:
    found = by_place(MATRIX, [run("head", 0.5), run("a", 0.7, budget="small"), {**run("b", 0.0), "failure": "why"}])
    assert found["head"] == {("n", "t", 0): {"small": 0.5, "large": 0.5}}
    assert found["a"] == {("n", "t", 0): {"small": 0.7}}
    assert found["b"] == {}


def test_budgets_are_no_further_observations() -> None:
    """Two seeds under two budgets: two differences, each a mean; a budget that one of them lacks does not count."""
    a = {("small", 0): 0.6, ("large", 0): 0.8, ("small", 1): 0.9, ("large", 1): 0.4}
    b = {("small", 0): 0.5, ("large", 0): 0.5, ("small", 1): 0.5}
    runs = [run(name, x, budget=at, seed=s) for name, of in (("a", a), ("b", b)) for (at, s), x in of.items()]
    found = {(c.first, c.second): c for c in compare(MATRIX, [*runs, run("head", 0.6), run("full", 0.5)])}
    assert (found["a", "b"].pairs, found["a", "b"].wins) == (2, 2)
    assert found["a", "b"].mean_difference == pytest.approx((0.2 + 0.4) / 2)
    assert found["a", "head"].pairs == 1
    assert found["a", "head"].mean_difference == pytest.approx((0.0 + 0.2) / 2)
    assert found["head", "full"].pairs == 1
    assert found["head", "full"].t_p is None


def test_a_comparison_is_that_of_the_textbook() -> None:
    """Differences 1, 2, ..., 7, -8 hundredths: t = mean / (s / sqrt 8); signed ranks by all 2^8 signs."""
    base, more = [0.5] * 8, [0.51, 0.52, 0.53, 0.54, 0.55, 0.56, 0.57, 0.42]
    (found,) = compare(MATRIX, planned("a", *more) + planned("b", *base))
    assert (found.first, found.second, found.pairs, found.wins, found.losses) == ("a", "b", 8, 7, 1)
    assert found.mean_difference == pytest.approx(0.025)
    signs = itertools.product((-1, 1), repeat=8)
    ranks = range(1, 9)
    sums = [abs(sum(sign * rank for sign, rank in zip(choice, ranks, strict=True))) for choice in signs]
    assert found.wilcoxon_p == pytest.approx(sum(total >= 28 - 8 for total in sums) / 2**8)
    differences = [1, 2, 3, 4, 5, 6, 7, -8]
    mean = sum(differences) / 8
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / 7)
    assert found.t_p == pytest.approx(students_p(mean / (deviation / math.sqrt(8)), 7), rel=1e-4)
    assert (found.t_p_corrected, found.wilcoxon_p_corrected) == (found.t_p, found.wilcoxon_p)


def students_p(t: float, degrees: int) -> float:
    """Two-sided, by the density's integral."""
    scale = math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2) / math.sqrt(degrees * math.pi)
    steps, width = 200_000, abs(t) / 200_000
    inside = sum(scale * (1 + ((i + 0.5) * width) ** 2 / degrees) ** (-(degrees + 1) / 2) * width for i in range(steps))
    return 1 - 2 * inside


def test_equal_contenders_have_no_p() -> None:
    (same,) = compare(MATRIX, planned("a", *[0.5] * 8) + planned("b", *[0.5] * 8))
    assert (same.t_p, same.wilcoxon_p, same.wins, same.losses) == (None, None, 0, 0)
    (constant,) = compare(MATRIX, planned("a", *[0.75] * 8) + planned("b", *[0.5] * 8))
    assert constant.t_p is None
    assert constant.wilcoxon_p == pytest.approx(2 / 2**8)


def test_holm_on_the_example_of_the_textbook() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_order_and_rejects_as_the_steps_do(values: list[float]) -> None:
    corrected = holm(values)
    for p, q in zip(values, corrected, strict=True):
        assert q is not None
        assert p <= q <= 1
    order = sorted(range(len(values)), key=lambda i: values[i])
    rejecting = True
    for k, place in enumerate(order):  # Holm's own wording: stop at the first that is above alpha / (n - k)
        rejecting = rejecting and values[place] * (len(values) - k) <= 0.05
        assert (corrected[place] <= 0.05) == rejecting  # type: ignore[operator]


def test_shares_of_full_are_means_over_tasks() -> None:
    runs = [
        run("full", 0.8), run("full", 0.9, seed=1), run("full", 0.5, task="u"),
        run("a", 0.85, budget="small"), run("a", 0.4, task="u", budget="small"), run("head", 0.2, task="u"),
    ]  # fmt: skip
    found = {(s.contender, s.budget): s for s in standings(MATRIX, runs)}
    assert set(found) == {("a", "small"), ("head", None), ("full", None)}
    assert found["a", "small"].share_of_full == pytest.approx((0.85 / 0.85 + 0.4 / 0.5) / 2)
    assert found["a", "small"].memory_ratio == pytest.approx(0.01)
    assert found["head", None].share_of_full == pytest.approx(0.4)
    assert found["full", None].cells == 3
    assert [s.share_of_full for s in standings(MATRIX, runs[3:])] == [None, None]


def test_the_deviation_is_over_seeds_not_over_tasks() -> None:
    """t: 0.2 and 0.4, variance 0.02; u: 0.9 and 0.9, variance 0; pooled over two degrees of freedom: 0.01."""
    runs = [run("full", a, task=t, seed=s) for t, s, a in (("t", 0, 0.2), ("t", 1, 0.4), ("u", 0, 0.9), ("u", 1, 0.9))]
    (found,) = standings(MATRIX, runs)
    assert found.deviation == pytest.approx(0.1)
    (once,) = standings(MATRIX, runs[1:3])
    assert once.deviation is None
