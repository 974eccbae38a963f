"""Explain a decision: price every layer and bias beside it, one step more and one step less, in the exact model."""

from __future__ import annotations

from dataclasses import replace

from medyate_planner.errors import MedyateError
from medyate_planner.memory.timeline import LOSS_MOMENT, footprint
from medyate_planner.planning.decision import Decision, Strategy
from medyate_planner.planning.explanation import SENTENCES, ExplainedUnit, Explanation, Limit, NextBytes, QuotaChange
from medyate_planner.planning.pricing import PricedPlan, UnitPrice, price_of, units_of
from medyate_planner.planning.reasons import facts_of, reason_of
from medyate_planner.planning.recompute import moment_in_words, scope_bytes
from medyate_planner.planning.request import PlanRequest
from medyate_planner.planning.strategies import STRATEGIES

NEXT_BYTES = 100_000


def explain(
    request: PlanRequest, decision: Decision, *, next_bytes: int = NEXT_BYTES, strategy: Strategy | None = None
) -> Explanation:
    """Why each layer and bias is in or out, what binds, and what `next_bytes` more would buy (0: do not ask).

    A strategy that draws anew each interval is explained by its first draw.

    Limits: a unit is priced alone beside the plan. That two units would share a pass-through, or that one might take
        another's place, is seen by `next_bytes` alone, which asks the strategy again.
    """
    base = PricedPlan(request, decision)
    prices = [price_of(base, layer, what) for layer, what in units_of(request)]
    bought = [p.last for p in prices if p.last is not None and p.layer.name not in request.forced]
    worst = min((step.per_kb for step in bought if step.per_kb is not None), default=None)
    found = None
    notes = [] if not decision.draws else ["channels are drawn anew in each interval: this is the first draw"]
    if next_bytes > 0:
        try:
            found = _next(base, next_bytes, strategy or STRATEGIES[decision.strategy])
        except (MedyateError, KeyError) as error:
            notes.append(f"what {next_bytes:,} B more would buy could not be found: {error}")
    return Explanation(
        strategy=decision.strategy,
        scope=request.scope,  # type: ignore[arg-type]
        budget_bytes=request.budget_bytes,
        used_bytes=base.used_bytes,
        left_bytes=base.left_bytes,
        worst_value_per_kb=worst,
        limits=_limits(base, prices),
        units=tuple(_explained(base, price, worst) for price in prices),
        next=found,
        notes=tuple(notes),
    )


def _explained(base: PricedPlan, price: UnitPrice, worst: float | None) -> ExplainedUnit:
    layer = price.layer
    reason = reason_of(base, price, worst)
    in_full = reason == "head"
    quota = layer.channels if in_full else price.quota
    return ExplainedUnit(
        name=layer.name,
        what=price.what,
        kind=layer.kind,
        channels=layer.channels,
        quota=quota,
        chosen=quota > 0,
        reason=reason,
        sentence=SENTENCES[reason].format(**facts_of(base, price, worst)),
        own_bytes=price.own_bytes,
        reach_bytes=price.reach_bytes,
        next_bytes=None if price.next is None else price.next.nbytes,
        next_value=None if price.next is None else price.next.value,
        next_value_per_kb=None if price.next is None else price.next.per_kb,
        last_value_per_kb=None if price.last is None else price.last.per_kb,
    )


def _limits(base: PricedPlan, prices: list[UnitPrice]) -> tuple[Limit, ...]:
    """What the plan may not exceed. A limit binds if something of value would break it, taken alone."""
    request = base.request
    steps = [price.next for price in prices if price.next is not None and price.next.value > 0]
    where, at = "as a plain sum", None
    if request.scope == "training":
        at = footprint(request.memory, base.updates).peak_moment.at
        where = moment_in_words(request, at)
    elif request.scope == "peak":
        where = "at the largest moment of the step"
    found = [
        Limit(
            name="budget",
            used=base.used_bytes,
            limit=request.limit_bytes,
            left=base.left_bytes,
            binds=any(step.nbytes > base.left_bytes for step in steps),
            where=where,
            at=None if at == LOSS_MOMENT else at,
        )
    ]
    if request.max_layers is not None:
        used = len(base.updates.quotas)
        wanting = any(not p.quota and p.what == "channels" and p.next is not None and p.next.value > 0 for p in prices)
        left = request.max_layers - used
        found.append(
            Limit(name="max-layers", used=used, limit=request.max_layers, left=left, binds=wanting and left <= 0)
        )
    if request.max_flops is not None and base.left_flops is not None:
        left = base.left_flops
        binds = any(step.flops > left for step in steps)
        found.append(Limit(name="max-flops", used=base.used_flops, limit=request.max_flops, left=left, binds=binds))
    return tuple(found)


def _next(base: PricedPlan, next_bytes: int, strategy: Strategy) -> NextBytes:
    """Ask the same strategy with a larger budget; what it finds worse than the plan is not worth naming."""
    request, before = base.request, base.updates
    asked = replace(request, budget_bytes=request.budget_bytes + next_bytes, lp_file=None)
    after = strategy(asked).updates
    gained = request.value(after) - request.value(before)
    if gained < 0:
        gained, after = 0.0, before
    names = [unit.name for unit in request.memory.graph.units]
    pairs = [(name, before.quotas.get(name, 0), after.quotas.get(name, 0)) for name in names]
    return NextBytes(
        next_bytes=next_bytes,
        budget_bytes=asked.budget_bytes,
        used_bytes=scope_bytes(request, after) - base.used_bytes,
        gained=gained,
        gained_per_kb=1000 * gained / next_bytes,
        layers=tuple(QuotaChange(name=n, before=b, after=a) for n, b, a in pairs if b != a),
        biases_entering=tuple(n for n in names if n in after.biases and n not in before.biases),
        biases_leaving=tuple(n for n in names if n in before.biases and n not in after.biases),
    )
