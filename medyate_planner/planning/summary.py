"""A plan in a few words: for its page, a REPL and a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medyate_planner.summary import Gauge, Row, Summary, against, counted, the_head
from medyate_planner.units import format_bytes

if TYPE_CHECKING:
    from medyate_planner.planning.plan import Plan, PlannedLayer


def summary_of(plan: Plan) -> Summary:
    """What is trained, within which budget, and how good the plan is."""
    biases = {*plan.biases, *(layer.name for layer in plan.layers if layer.head)}
    return Summary(
        title=f"Plan of {plan.model.spec or 'a model made in Python'}, batch {plan.batch_size}",
        lines=sentences(plan),
        columns=("layer", "kind", "trained", "bias"),
        rows=tuple(
            Row(
                cells=(
                    layer.name + (" (head)" if layer.head and layer.name != "head" else ""),
                    layer.kind,
                    quota_text(plan, layer),
                    "yes" if layer.name in biases else "",
                ),
                share=quota_range(plan, layer)[1] / layer.channels,
            )
            for layer in plan.layers
        ),
        share="of its channels",
        gauge=Gauge(
            text=f"{plan.used_bytes:,} B of {plan.budget_bytes:,} B (scope {plan.scope})",
            share=plan.used_bytes / plan.budget_bytes,
        ),
    )


def sentences(plan: Plan) -> tuple[str, ...]:
    """What is trained; budget and prediction; how good the plan is."""
    return (_trained(plan), _used(plan), _status(plan))


def quota_range(plan: Plan, layer: PlannedLayer) -> tuple[int, int]:
    """Fewest and most channels at a time: one and the same number, unless quotas are drawn anew."""
    if layer.quota is not None:
        return layer.quota, layer.quota
    drawn = [draw.get(layer.name, 0) for draw in plan.sampling.draws or ({},)]
    return min(drawn), max(drawn)


def quota_text(plan: Plan, layer: PlannedLayer) -> str:
    """`12 of 96`, or `0 to 12 of 96` where quotas are drawn anew."""
    least, most = quota_range(plan, layer)
    return f"{least:,} of {layer.channels:,}" if least == most else f"{least:,} to {most:,} of {layer.channels:,}"


def _trained(plan: Plan) -> str:
    bought = [layer for layer in plan.layers if not layer.head]
    heads = [layer.name for layer in plan.layers if layer.head]
    parts = []
    if bought and plan.sampling.pool is not None:
        parts.append(f"channels drawn across {counted(len(bought), 'layer')}")
    elif bought:
        of, channels = sum(layer.channels for layer in bought), sum(layer.quota or 0 for layer in bought)
        parts.append(f"{channels:,} of the {of:,} input channels of {counted(len(bought), 'layer')} at a time")
    if plan.biases:
        parts.append(counted(len(plan.biases), "bias", "biases"))
    if heads:
        parts.append(f"{the_head(heads)} in full")
    return f"Trains {_listed(parts)}."


def _used(plan: Plan) -> str:
    used = f"{plan.used_bytes:,} B ({format_bytes(plan.used_bytes)})"
    return f"Predicted in scope {plan.scope}: {used}, {against(plan.used_bytes, plan.budget_bytes)}."


def _status(plan: Plan) -> str:
    gap = f", to a relative gap of {plan.gap_ratio:.1e}" if plan.status == "optimal" and plan.gap_ratio > 0 else ""
    return f"The plan is {plan.status}{gap}; strategy {plan.strategy}."


def _listed(parts: list[str]) -> str:
    if not parts:
        return "nothing"
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
