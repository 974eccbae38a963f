"""Value curves: concave, and never overstated by their interpolation."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medyate_planner.errors import InputError
from medyate_planner.importance.curves import ValueCurve, bias_value, value_curve
from medyate_planner.importance.energy import Importance

energies = st.lists(st.one_of(st.just(0.0), st.floats(1e-12, 1e6, allow_nan=False)), min_size=1, max_size=70).map(
    np.array
)
RANDOM = settings(max_examples=150, deadline=None, derandomize=True)


def importance(energy: np.ndarray, **bias: float) -> Importance:
    return Importance(energy={"a": energy}, norms={}, bias_energy=bias, fingerprint="", source="")


@RANDOM
@given(
    energy=energies,
    objective=st.sampled_from(["projection", "norm", "energy"]),
    curve=st.sampled_from(["uniform", "weighted", "top"]),
    seed=st.integers(0, 5),
)
def test_value_curve_is_concave_and_bounded_below_by_its_interpolation(
    energy: np.ndarray, objective: str, curve: str, seed: int
) -> None:
    made = value_curve(importance(energy), "a", objective=objective, curve=curve, seed=seed)
    values = np.array(made.values)
    channels, scale = len(energy), max(made.values) + 1e-300
    assert made.channels == channels
    assert len(values) == channels + 1
    assert values[0] == 0.0
    total = energy.sum() if objective == "energy" else np.sqrt(energy.sum())
    assert values[-1] == pytest.approx(total, rel=1e-9)
    steps = np.diff(values)
    assert (steps >= -1e-9 * scale).all()
    assert (np.diff(steps) <= 1e-9 * scale).all()

    points = made.breakpoints
    assert len(points) <= 8
    assert list(points) == sorted(set(points))
    assert points[0] == 1
    assert points[-1] == channels
    knots = [0, *points]
    assert len(made.segments) == len(points)
    for n in range(channels + 1):
        expected = np.interp(n, knots, values[knots])
        lowest = min(slope * n + intercept for slope, intercept in made.segments)
        assert made.interpolated(n) == pytest.approx(expected, abs=1e-9 * scale)
        assert lowest == pytest.approx(expected, abs=1e-8 * scale)
        assert expected <= values[n] + 1e-9 * scale


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 3)),
        (4, (1, 2, 4)),
        (5, (1, 2, 3, 5)),
        (8, (1, 2, 3, 5, 6, 8)),
        (99, (1, 3, 9, 19, 33, 51, 73, 99)),
    ],
)
def test_breakpoints_are_spaced_quadratically(channels: int, expected: tuple[int, ...]) -> None:
    assert ValueCurve(layer="a", values=tuple(map(float, range(channels + 1)))).breakpoints == expected


def test_uniform_and_top_by_hand() -> None:
    energy = np.array([1.0, 9.0, 2.0])
    uniform = value_curve(importance(energy), "a", objective="energy")
    assert uniform.values == (0.0, 4.0, 8.0, 12.0)
    top = value_curve(importance(energy), "a", objective="energy", curve="top")
    assert top.values == (0.0, 9.0, 11.0, 12.0)
    assert value_curve(importance(energy), "a", objective="norm").values == pytest.approx((0.0, 2.0, 8**0.5, 12**0.5))
    assert value_curve(importance(energy), "a").values == pytest.approx(
        [share * 12**0.5 for share in (0, 1 / 3, 2 / 3, 1)]
    )


def test_projection_is_the_length_along_the_layers_gradient() -> None:
    """Of a gradient g whose channels are drawn, by all draws: the mean of (part of g that was drawn) . g / |g|."""
    gradient = np.random.default_rng(0).normal(size=(5, 7))
    made = value_curve(importance((gradient**2).sum(1)), "a", objective="projection").values
    for n in range(6):
        drawn = [np.zeros_like(gradient) for _ in combinations(range(5), n)]
        for part, chosen in zip(drawn, combinations(range(5), n), strict=True):
            part[list(chosen)] = gradient[list(chosen)]
        along = [float((part * gradient).sum() / np.linalg.norm(gradient)) for part in drawn]
        assert made[n] == pytest.approx(np.mean(along))


def test_weighted_estimates_the_expectation_of_successive_draws() -> None:
    """Exact by enumeration of all orders; the estimate has 64 draws, so several seeds are averaged."""
    energy = np.array([1.0, 2.0, 4.0, 8.0])
    exact = np.zeros(5)
    for order in permutations(range(4)):
        chance, left = 1.0, energy.sum()
        for channel in order:
            chance *= energy[channel] / left
            left -= energy[channel]
        exact[1:] += chance * np.cumsum(energy[list(order)])
    runs = [
        value_curve(importance(energy), "a", objective="energy", curve="weighted", seed=s).values for s in range(60)
    ]
    np.testing.assert_allclose(np.mean(runs, axis=0), exact, rtol=0.02)
    uniform = value_curve(importance(energy), "a", objective="energy").values
    top = value_curve(importance(energy), "a", objective="energy", curve="top").values
    assert all(u < w < t for u, w, t in zip(uniform[1:-1], runs[0][1:-1], top[1:-1], strict=True))


def test_weighted_is_a_pure_function_of_its_seed() -> None:
    energy = np.array([1.0, 2.0, 4.0, 8.0, 0.0])
    one, two, other = (value_curve(importance(energy), "a", curve="weighted", seed=s).values for s in (1, 1, 2))
    assert one == two != other


def test_value_curve_of_worthless_channels_is_zero() -> None:
    for curve in ("uniform", "weighted", "top"):
        made = value_curve(importance(np.zeros(9)), "a", curve=curve)
        assert made.values == (0.0,) * 10
        assert all(slope == 0.0 for slope, _ in made.segments)


def test_value_curve_refuses_unknown_names() -> None:
    for options in ({"objective": "l1"}, {"curve": "best"}):
        with pytest.raises(InputError, match=r"objectives: projection, norm, energy; curves: uniform, weighted, top"):
            value_curve(importance(np.ones(2)), "a", **options)


def test_bias_value() -> None:
    assert bias_value(importance(np.ones(2), a=9.0), "a", "energy") == 9.0
    assert bias_value(importance(np.ones(2), a=9.0), "a", "norm") == 3.0
    assert bias_value(importance(np.ones(2)), "a", "norm") == 0.0
