"""The largest batch that fits: exact wherever the peak never falls, and found with few evaluations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medyate_planner.memory.largest import MOST_SAMPLES, largest_batch


def _counted(peak: list[int]) -> tuple[dict[int, int], object]:
    asked: dict[int, int] = {}

    def peak_at(batch: int) -> int:
        asked[batch] = asked.get(batch, 0) + 1
        return peak[min(batch, len(peak)) - 1] + (10**9 if batch > len(peak) else 0)

    return asked, peak_at


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(0, 1500))
def test_largest_batch_is_that_of_a_linear_search(steps: list[int], budget: int) -> None:
    peaks = [sum(steps[: n + 1]) + 1 for n in range(len(steps))]
    expected = max((n for n, peak in enumerate(peaks, start=1) if peak <= budget), default=0)
    asked, peak_at = _counted(peaks)
    found, peak = largest_batch(peak_at, budget)  # type: ignore[arg-type]
    assert found == expected
    assert peak == peaks[max(found, 1) - 1]
    assert set(asked.values()) == {1}
    assert found == 0 or {found, found + 1} <= asked.keys()


@given(st.integers(0, 10**6), st.integers(1, 10**4), st.integers(1, 10**9))
def test_largest_batch_of_an_affine_peak_needs_four_evaluations(fixed: int, each: int, budget: int) -> None:
    asked: list[int] = []

    def peak_at(batch: int) -> int:
        asked.append(batch)
        return fixed + each * batch

    found, peak = largest_batch(peak_at, budget)
    assert found == max(0, min(MOST_SAMPLES, (budget - fixed) // each))
    assert peak == fixed + each * max(1, found)
    assert len(asked) <= 4


@given(st.lists(st.integers(2, 500), max_size=4), st.integers(1, 100_000))
def test_largest_batch_is_found_fast_where_the_peak_jumps(jumps: list[int], budget: int) -> None:
    asked: list[int] = []

    def peak_at(batch: int) -> int:
        asked.append(batch)
        return 100 * batch + sum(5000 for jump in jumps if batch >= jump)

    found, _ = largest_batch(peak_at, budget)
    assert found == max((n for n in range(1, 1001) if peak_at(n) <= budget), default=0)
    assert len(asked) - 1000 <= 40


def test_nothing_fits_gives_zero_and_the_peak_of_one_sample() -> None:
    assert largest_batch(lambda batch: 10 * batch, 9) == (0, 10)


def test_a_peak_that_never_grows_stops_at_the_most_samples() -> None:
    assert largest_batch(lambda _batch: 10, 10**12) == (MOST_SAMPLES, 10)
    assert largest_batch(lambda _batch: 10, 11) == (MOST_SAMPLES, 10)


@pytest.mark.parametrize(("budget", "expected"), [(1, 1), (2, 2), (3, 3), (MOST_SAMPLES + 5, MOST_SAMPLES)])
def test_budgets_at_the_edges(budget: int, expected: int) -> None:
    assert largest_batch(lambda batch: batch, budget) == (expected, expected)
