"""Which of the known reasons keeps a unit in a plan, or out of it; and all that its sentence may name."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from medyate_planner.memory.timeline import footprint
from medyate_planner.planning.explanation import Reason
from medyate_planner.planning.pricing import PricedPlan, UnitPrice
from medyate_planner.planning.recompute import moment_in_words
from medyate_planner.planning.request import PlanRequest


def reason_of(base: PricedPlan, price: UnitPrice, worst: float | None) -> Reason:
    if price.layer.name in base.updates.full:
        return "head"
    if price.quota:
        return _reason_in(base, price)
    if not price.for_sale:
        return _reason_not_for_sale(base.request, price)
    return _reason_out(base, price, worst)


def _reason_in(base: PricedPlan, price: UnitPrice) -> Reason:
    if price.what == "bias":
        return "in_bias"
    if price.layer.name in base.request.forced:
        return "forced"
    if price.quota == price.layer.channels:
        return "in_whole"
    step = price.next
    if step is None:
        return "in_all_allowed"
    if base.left_flops is not None and step.flops > base.left_flops:
        return "in_flops"
    if step.nbytes > base.left_bytes:
        return "in_budget"
    return "in_gap" if base.decision.bound is not None else "in_strategy"


def _reason_not_for_sale(request: PlanRequest, price: UnitPrice) -> Reason:
    layer = price.layer
    if any(fnmatchcase(layer.name, pattern) for pattern in request.forbid_layers):
        return "forbidden"
    if not request.memory.site_positions[layer.name]:
        return "not_upstream"
    if not layer.trainable and not any(fnmatchcase(layer.name, pattern) for pattern in request.force_layers):
        return "frozen"
    if layer.channels < request.granularity:
        return "granularity"
    return "not_for_sale"


def _reason_out(base: PricedPlan, price: UnitPrice, worst: float | None) -> Reason:
    request, step = base.request, price.next
    assert step is not None  # for sale and out: there is a least quota
    if step.value <= 0:
        return "no_value"
    if price.what == "channels" and request.max_layers is not None and len(base.updates.quotas) >= request.max_layers:
        return "max_layers"
    if base.left_flops is not None and step.flops > base.left_flops:
        return "max_flops"
    if step.nbytes <= base.left_bytes:
        return "gap" if base.decision.bound is not None else "strategy"
    reach, own = price.reach_bytes or 0, price.own_bytes or 0
    if reach > max(base.left_bytes, own):
        return "reach"
    if worst is not None and step.per_kb is not None and step.per_kb < worst:
        return "worth_less"
    return "too_large"


def facts_of(base: PricedPlan, price: UnitPrice, worst: float | None) -> Mapping[str, Any]:
    """All that a sentence may name."""
    request = base.request
    what = "its channels are" if price.layer.kind != "norm" else "without --norm-scales the scales of norms are"
    thing = "channel" if request.least(price.layer) == 1 else f"{request.least(price.layer)} channels"
    return {
        "quota": price.quota,
        "channels": price.layer.channels,
        "step": "one" if price.growth == 1 else price.growth,
        "what": "with --no-biases biases are" if price.what == "bias" else what,
        "thing": "part, the bias," if price.what == "bias" else thing,
        "added": 0 if price.next is None else price.next.nbytes,
        "per_kb": 0.0 if price.next is None else price.next.per_kb or 0.0,
        "price": _price(price),
        "value": 0.0 if price.last is None else price.last.value,
        "reach": price.reach_bytes or 0,
        "where": _where(base, price),
        "left": base.left_bytes,
        "worst": worst or 0.0,
        "max_layers": request.max_layers,
        "granularity": request.granularity,
        "strategy": base.decision.strategy,
    }


def _price(price: UnitPrice) -> str:
    """What a unit that is in costs; what is not held at the largest moment adds nothing to the scope."""
    freed = 0 if price.last is None else price.last.nbytes
    return f"for {freed:,} B" if freed else "and adds nothing to the largest moment"


def _where(base: PricedPlan, price: UnitPrice) -> str:
    """The moment that would be the largest with the unit in the plan."""
    if base.request.scope != "training" or not price.for_sale:
        return "at the largest moment of the step"
    updates = base.changed(price.layer, price.what, price.quota + price.growth)
    return moment_in_words(base.request, footprint(base.request.memory, updates).peak_moment.at)
