"""Draws: exact, pure, and with the stated probabilities."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medyate_planner.errors import InputError
from medyate_planner.planning.sampling import METHODS, draw

INTERVALS = 4000


def frequencies(method: str, channels: int, quota: int, **options: Any) -> np.ndarray:
    counts = np.zeros(channels)
    for interval in range(INTERVALS):
        counts[draw(method, layer="a.b", channels=channels, quota=quota, seed=7, interval=interval, **options)] += 1
    return counts / INTERVALS


def inclusion_probabilities(weights: list[float], quota: int) -> np.ndarray:
    """Of successive draws without replacement, by enumeration of all orders."""
    found = np.zeros(len(weights))
    for order in permutations(range(len(weights))):
        chance, left = 1.0, sum(weights)
        for channel in order:
            chance *= weights[channel] / left
            left -= weights[channel]
        found[list(order[:quota])] += chance
    return found


def assert_close(found: np.ndarray, expected: np.ndarray, sigmas: float = 4.5) -> None:
    deviation = np.sqrt(expected * (1 - expected) / INTERVALS)
    assert (np.abs(found - expected) <= sigmas * deviation + 1e-12).all(), (found, expected)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    method=st.sampled_from(METHODS),
    channels=st.integers(1, 60),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**40),
    interval=st.integers(0, 10**6),
    data=st.data(),
)
def test_draw_is_exact_distinct_in_range_sorted_and_pure(
    method: str, channels: int, share: float, seed: int, interval: int, data: st.DataObject
) -> None:
    quota = round(share * channels)
    weight = st.one_of(st.just(0.0), st.floats(0, 1e9))
    importance = data.draw(st.lists(weight, min_size=channels, max_size=channels))
    facts: dict[str, Any] = {
        "layer": "block.conv", "channels": channels, "quota": quota, "seed": seed, "interval": interval,
        "importance": importance, "alpha": data.draw(st.sampled_from([0.5, 1.0, 2.0])),
    }  # fmt: skip
    np.random.seed(0)
    drawn = draw(method, **facts)
    np.random.seed(1)  # the global generator plays no part
    assert drawn == draw(method, **facts)
    assert len(drawn) == quota
    assert drawn == sorted(set(drawn))
    assert all(type(c) is int and 0 <= c < channels for c in drawn)


@pytest.mark.parametrize(("channels", "quota"), [(8, 3), (5, 4), (40, 1)])
def test_uniform_draws_every_channel_as_often(channels: int, quota: int) -> None:
    found = frequencies("uniform", channels, quota)
    assert_close(found, np.full(channels, quota / channels))
    expected = INTERVALS * quota / channels
    chi_square = float(((found * INTERVALS - expected) ** 2 / expected).sum()) / (1 - quota / channels)
    assert abs(chi_square - channels) < 5 * (2 * channels) ** 0.5 + 5


def test_uniform_draws_pairs_as_often_as_it_should() -> None:
    seen: dict[tuple[int, ...], int] = {}
    for interval in range(INTERVALS):
        pair = tuple(draw("uniform", layer="a", channels=5, quota=2, seed=3, interval=interval))
        seen[pair] = seen.get(pair, 0) + 1
    assert len(seen) == 10
    assert_close(np.array(list(seen.values())) / INTERVALS, np.full(10, 0.1))


@pytest.mark.parametrize("quota", [1, 2, 3])
@pytest.mark.parametrize("alpha", [1.0, 0.5, 2.0])
def test_weighted_draws_with_the_probabilities_of_successive_draws(quota: int, alpha: float) -> None:
    weights = [1.0, 2.0, 4.0, 8.0]
    expected = inclusion_probabilities([w**alpha for w in weights], quota)
    found = frequencies("weighted", 4, quota, importance=weights, alpha=alpha)
    assert_close(found, expected)
    assert list(found) == sorted(found)


def test_weighted_does_not_depend_on_the_scale() -> None:
    weights = np.array([1.0, 2.0, 4.0, 8.0])
    for scale in (1e-12, 1e12):
        one = draw("weighted", layer="a", channels=4, quota=2, seed=1, interval=5, importance=list(weights))
        assert one == draw(
            "weighted", layer="a", channels=4, quota=2, seed=1, interval=5, importance=list(weights * scale)
        )


def test_weighted_draws_worthless_channels_only_when_it_must() -> None:
    weights = [0.0, 3.0, 0.0, 1e-9, 0.0]
    assert frequencies("weighted", 5, 2, importance=weights).tolist() == [0.0, 1.0, 0.0, 1.0, 0.0]
    found = frequencies("weighted", 5, 3, importance=weights)
    assert found[[1, 3]].tolist() == [1.0, 1.0]
    assert_close(found[[0, 2, 4]], np.full(3, 1 / 3))
    assert_close(frequencies("weighted", 5, 2, importance=[0.0] * 5), np.full(5, 0.4))


def test_top_draws_the_largest_and_the_first_of_equals() -> None:
    weights = [1.0, 5.0, 3.0, 5.0, 0.0]
    facts: dict[str, Any] = {"layer": "a", "channels": 5, "seed": 0, "importance": weights}
    assert draw("top", quota=1, interval=0, **facts) == [1]
    assert draw("top", quota=3, interval=9, **facts) == [1, 2, 3]
    assert draw("top", quota=4, interval=1, **facts) == [0, 1, 2, 3]


def test_static_never_changes_and_differs_between_seeds_and_layers() -> None:
    drawn = {
        (seed, layer, interval): draw("static", layer=layer, channels=50, quota=10, seed=seed, interval=interval)
        for seed in (0, 1)
        for layer in ("a", "b")
        for interval in range(5)
    }
    assert len({tuple(channels) for channels in drawn.values()}) == 4
    for seed in (0, 1):
        assert len({tuple(drawn[seed, "a", interval]) for interval in range(5)}) == 1
    assert drawn[0, "a", 3] == draw("uniform", layer="a", channels=50, quota=10, seed=0, interval=0)


def test_uniform_depends_on_seed_interval_and_layer() -> None:
    drawn = {
        tuple(draw("uniform", layer=layer, channels=60, quota=20, seed=seed, interval=interval))
        for seed in (0, 1)
        for layer in ("a", "b")
        for interval in (0, 1)
    }
    assert len(drawn) == 8


def test_draw_of_all_or_none() -> None:
    for method in METHODS:
        facts: dict[str, Any] = {"layer": "a", "channels": 3, "seed": 0, "interval": 0, "importance": [1.0, 0.0, 2.0]}
        assert draw(method, quota=3, **facts) == [0, 1, 2]
        assert draw(method, quota=0, **facts) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"method": "best"}, "sampling method 'best' is unknown; choose one of uniform, weighted, top, static"),
        ({"quota": 5}, "layer a: expected a quota of 0 to 4, got 5"),
        ({"quota": -1}, "layer a: expected a quota of 0 to 4, got -1"),
        ({"method": "weighted"}, "layer a: this sampling needs the importance"),
        ({"method": "top"}, "layer a: this sampling needs the importance"),
        ({"method": "weighted", "importance": [1.0, 2.0]}, "layer a: expected 4 finite importances"),
        ({"method": "weighted", "importance": [1.0, 2.0, 3.0, -1.0]}, "layer a: expected 4 finite importances"),
        ({"method": "top", "importance": [1.0, 2.0, 3.0, float("nan")]}, "layer a: expected 4 finite importances"),
        ({"method": "top", "importance": [1.0, 2.0, 3.0, float("inf")]}, "layer a: expected 4 finite importances"),
    ],
)
def test_draw_refuses(options: dict[str, Any], text: str) -> None:
    facts = {"method": "uniform", "layer": "a", "channels": 4, "quota": 2, "seed": 0, "interval": 0, **options}
    with pytest.raises(InputError) as caught:
        draw(facts.pop("method"), **facts)
    assert text in caught.value.message


def test_weighted_survives_tiny_importances() -> None:
    weights = [1e-200, 1e-190, 1e-180, 1e-170]
    found = frequencies("weighted", 4, 1, importance=weights, alpha=2.0)
    assert found[3] > 0.99


def test_draw_refuses_a_negative_seed() -> None:
    with pytest.raises(InputError):
        draw("uniform", layer="a", channels=4, quota=2, seed=-1, interval=0)
