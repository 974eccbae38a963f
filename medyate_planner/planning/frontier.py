"""Value against budget: one decision for each of several budgets, monotone, and where the curve bends (its knee)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from medyate_planner.errors import InfeasibleBudgetError, InputError, SolverError
from medyate_planner.memory.model import Updates
from medyate_planner.planning.decision import Decision, Strategy
from medyate_planner.planning.recompute import scope_bytes
from medyate_planner.planning.request import PlanRequest
from medyate_planner.units import parse_bytes

MAX_POINTS = 1000
_EXAMPLES = "write 64kB:2MB:12 (from, to, how many) or 64kB,128kB,1MB"
_UNKNOWN_GAP = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """The best plan found for one budget; `decision` and all figures are None where none fits.

    `used_bytes` is what the budget limits (of several draws the largest; in scope `peak` the closed form), `objective`
    the exact value, `interpolated_objective` the solver's view of it. `marginal_per_kb` is the value gained per kB of
    budget since the feasible point before. `carried_from_bytes`: the plan is that of this smaller budget, because what
    was found here was worth less; `gap_ratio` is then the distance to this budget's own bound.
    """

    budget_bytes: int
    decision: Decision | None = None
    used_bytes: int | None = None
    objective: float | None = None
    interpolated_objective: float | None = None
    objective_bound: float | None = None
    marginal_per_kb: float | None = None
    layers: int | None = None
    channels: int | None = None
    biases: int | None = None
    status: str | None = None
    gap_ratio: float | None = None
    carried_from_bytes: int | None = None

    @property
    def feasible(self) -> bool:
        return self.decision is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """Points by rising budget. `minimum_bytes` is the smallest budget that can be met, `knee_bytes` the budget beyond
    which further bytes buy less than the curve's average."""

    request: PlanRequest
    strategy: str
    points: tuple[FrontierPoint, ...]
    minimum_bytes: int | None
    knee_bytes: int | None

    @property
    def feasible(self) -> tuple[FrontierPoint, ...]:
        return tuple(point for point in self.points if point.feasible)


def parse_budgets(text: str) -> tuple[int, ...]:
    """Budgets from `64kB:2MB:12` (geometrically spaced, ends exact, rounded to bytes) or `64kB,128kB,1MB`; ascending.

    Raises:
        InputError: neither of the two, or fewer different budgets than asked for.
    """
    if ":" not in text:
        return checked_budgets([parse_bytes(part, what="--budgets") for part in text.split(",")])
    parts = text.split(":")
    if len(parts) != 3:
        raise InputError(f"--budgets: expected three parts in {text!r}, got {len(parts)}; {_EXAMPLES}")
    low, high = (parse_bytes(part, what="--budgets") for part in parts[:2])
    try:
        count = int(parts[2])
    except ValueError:
        raise InputError(f"--budgets: expected a number of budgets, got {parts[2]!r}; {_EXAMPLES}") from None
    if not 2 <= count <= MAX_POINTS:
        raise InputError(f"--budgets: expected 2 to {MAX_POINTS:,} budgets, got {count}")
    if low >= high:
        raise InputError(f"--budgets: expected a range that rises, got {low:,} B to {high:,} B")
    between = [round(low * (high / low) ** (i / (count - 1))) for i in range(1, count - 1)]
    budgets = checked_budgets([low, *between, high])
    if len(budgets) < count:
        raise InputError(
            f"--budgets: {text!r} gives only {len(budgets)} different budgets, {count} were asked for; ask for fewer"
        )
    return budgets


def checked_budgets(budgets: Sequence[int]) -> tuple[int, ...]:
    """Budgets in bytes, ascending, each once.

    Raises:
        InputError: none or too many, or one below 1 byte.
    """
    distinct = tuple(sorted(set(budgets)))
    if not distinct or len(distinct) > MAX_POINTS:
        raise InputError(f"budgets: expected 1 to {MAX_POINTS:,} budgets, got {len(distinct)}; {_EXAMPLES}")
    if distinct[0] < 1:
        raise InputError(f"budgets: expected 1 byte or more, got {distinct[0]}")
    return distinct


def trace_frontier(
    request: PlanRequest,
    budgets: Sequence[int],
    strategy: Strategy,
    *,
    on_point: Callable[[int, int], None] = lambda _done, _of: None,
) -> Frontier:
    """Answer the request at every budget; more budget never gives a worse objective.

    The program that `request.lp_file` asks for is the one of the largest budget.

    Raises:
        InfeasibleBudgetError: not even the largest budget can be met.
        InputError, ContradictionError, SolverError: as the strategy; a solver that finds nothing in time at one
            budget is forgiven where a smaller budget has a plan.
    """
    amounts = checked_budgets(budgets)
    points: list[FrontierPoint] = []
    refusals: list[InfeasibleBudgetError] = []
    best: FrontierPoint | None = None
    for count, budget in enumerate(amounts, start=1):
        last = budget == amounts[-1]
        asked = replace(request, budget_bytes=budget, lp_file=request.lp_file if last else None)
        try:
            point = _point(asked, _decide(asked, strategy, best), best)
        except InfeasibleBudgetError as error:
            refusals.append(error)
            point = FrontierPoint(budget_bytes=budget)
        points.append(point)
        best = point if point.feasible else best
        on_point(count, len(amounts))
    if best is None or best.decision is None:
        raise refusals[-1]
    feasible = [point for point in points if point.feasible]
    knee = knee_index([p.budget_bytes for p in feasible], [p.objective or 0.0 for p in feasible])
    return Frontier(
        request=request,
        strategy=best.decision.strategy,
        points=tuple(points),
        minimum_bytes=_minimum_bytes(request, strategy, refusals, feasible[0].budget_bytes),
        knee_bytes=None if knee is None else feasible[knee].budget_bytes,
    )


def knee_index(budgets: Sequence[int], values: Sequence[float]) -> int | None:
    """Which point of a rising curve is farthest above its chord, both axes scaled to 0..1, neither by a logarithm: a
    byte is a byte, however the budgets are spaced.

    None with fewer than three points, or where no point lies above the chord.

    Source: Satopää et al. 2011, "Finding a Kneedle in a Haystack"; here without smoothing, the curve being exact.
    """
    if len(budgets) < 3:
        return None
    height, width = values[-1] - values[0], budgets[-1] - budgets[0]
    if height <= 0:
        return None
    above = [
        (value - values[0]) / height - (budget - budgets[0]) / width
        for budget, value in zip(budgets, values, strict=True)
    ]
    best = max(range(len(above)), key=lambda i: above[i])
    return best if above[best] > 1e-9 else None


def _decide(request: PlanRequest, strategy: Strategy, best: FrontierPoint | None) -> Decision:
    try:
        return strategy(request)
    except SolverError:
        if best is None or best.decision is None:
            raise
        return replace(best.decision, status="feasible", bound=None, gap_ratio=_UNKNOWN_GAP)


def _point(request: PlanRequest, found: Decision, best: FrontierPoint | None) -> FrontierPoint:
    """The figures of a decision, or of the best one so far if that is worth more."""
    decision, carried_from = found, None
    if best is not None and best.decision is not None and _worth(request, found) < _worth(request, best.decision):
        decision = _carried(request, best.decision, found)
        if not _same(best.decision.updates, found.updates):
            carried_from = best.carried_from_bytes or best.budget_bytes
    objective, updates = _worth(request, decision), decision.updates
    return FrontierPoint(
        budget_bytes=request.budget_bytes,
        decision=decision,
        used_bytes=max(scope_bytes(request, each) for each in decision.all_updates),
        objective=objective,
        interpolated_objective=request.interpolated_value(updates),
        objective_bound=decision.bound,
        marginal_per_kb=None if best is None else _marginal(request, objective, best),
        layers=len(updates.quotas),
        channels=sum(updates.quotas.values()),
        biases=len(updates.biases),
        status=decision.status,
        gap_ratio=decision.gap_ratio,
        carried_from_bytes=carried_from,
    )


def _carried(request: PlanRequest, earlier: Decision, found: Decision) -> Decision:
    """The earlier decision under what is known of this budget: its bound, and the gap to that."""
    if _same(earlier.updates, found.updates):
        return replace(found, updates=earlier.updates)  # the same plan; its value was summed in another order
    value, gap = request.interpolated_value(earlier.updates), found.gap_ratio
    if found.bound:
        gap = max(0.0, (found.bound - value) / abs(found.bound))
    facts = {**earlier.facts, "interpolated_objective": value}
    return replace(earlier, status="feasible", bound=found.bound, gap_ratio=gap, facts=facts)


def _worth(request: PlanRequest, decision: Decision) -> float:
    return request.value(decision.updates)


def _same(one: Updates, other: Updates) -> bool:
    return dict(one.quotas) == dict(other.quotas) and one.biases == other.biases and one.full == other.full


def _marginal(request: PlanRequest, objective: float, before: FrontierPoint) -> float:
    return 1000 * (objective - (before.objective or 0.0)) / (request.budget_bytes - before.budget_bytes)


def _minimum_bytes(
    request: PlanRequest, strategy: Strategy, refusals: Sequence[InfeasibleBudgetError], feasible_bytes: int
) -> int | None:
    """The smallest budget that can be met, as the strategy itself states it; never above one that was met."""
    if not refusals:
        try:
            strategy(replace(request, budget_bytes=1, lp_file=None))
        except InfeasibleBudgetError as error:
            refusals = [error]
        except (InputError, SolverError):
            return None
    return min([feasible_bytes, *(error.minimum_bytes for error in refusals)]) if refusals else 1
