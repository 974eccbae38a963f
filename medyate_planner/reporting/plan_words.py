"""A plan in sentences and facts: what its page and its text say of it."""

from __future__ import annotations

from medyate_planner.planning.plan import Plan
from medyate_planner.summary import counted
from medyate_planner.units import format_count

NO_DATA = "no data seen"  # in the source of an importance that was not measured


def warnings_of(plan: Plan) -> tuple[str, ...]:
    """What a reader must know before relying on the plan."""
    found = []
    if plan.used_bytes > plan.budget_bytes:
        found.append("The prediction is above the budget: this file was changed after it was planned.")
    if plan.scope == "update":
        found.append("Scope update is a sum as the papers count it; what a step really keeps is the training figure.")
    if NO_DATA in plan.importance.source:
        found.append(
            f"Importance is {plan.importance.source}: measure it on your data with `medyate rank` for a better plan."
        )
    if plan.status == "feasible" and plan.gap_ratio > 0:
        found.append(f"The solver stopped early: a plan may be worth up to {plan.gap_ratio:.1%} more.")
    if not any(not layer.head for layer in plan.layers) and not plan.biases:
        found.append("Only the head is trained.")
    if plan.sampling.draws is not None:
        found.append(
            f"Quotas change between intervals: {counted(len(plan.sampling.draws), 'draw')} planned, figures are the "
            "largest over them."
        )
    if plan.sampling.oracle:
        found.append("To draw anew as this strategy does would need full gradients, beyond the budget.")
    return (*found, *(plan.explanation.notes if plan.explanation is not None else ()))


def facts_of(plan: Plan) -> tuple[tuple[str, str], ...]:
    """How it was asked for."""
    model = plan.model
    dtype = plan.dtype if plan.autocast is None else f"{plan.dtype}, autocast {plan.autocast}"
    scope = plan.scope if not plan.margin_ratio else f"{plan.scope}, margin {plan.margin_ratio:g}"
    if plan.scope == "peak":
        scope += f", weights in {plan.weights_in}"
    facts = [
        ("parameters", f"{model.num_parameters:,} ({format_count(model.num_parameters)})"),
        ("batch", f"{plan.batch_size:,}"),
        ("dtype", dtype),
        ("scope", scope),
        ("update", plan.update if plan.update == "fused" else f"{plan.update}, {plan.optimizer}"),
        ("norms", plan.norm),
        ("loss", plan.loss),
        ("objective", f"{plan.objective_name} of {plan.metric} on {plan.curve}: {plan.objective:.6g}"),
        ("importance", plan.importance.source),
    ]
    if plan.accumulation > 1:
        facts.append(("accumulation", f"{plan.accumulation:,} passes"))
    if plan.dropout == "keep":
        facts.append(("dropout", "keep"))
    figures = plan.predicted
    if figures.flops and figures.full_flops:
        share = figures.flops / figures.full_flops
        facts.append(("operations of a step", f"{figures.flops:,}, {share:.1%} of full fine-tuning's"))
    facts.append(("fingerprint", model.fingerprint[:12]))
    return tuple(facts)


def sampling_of(plan: Plan) -> tuple[tuple[str, str], ...]:
    """How channels are redrawn."""
    sampling = plan.sampling
    every = "epoch" if sampling.interval_steps is None else counted(sampling.interval_steps, "step")
    facts = [("method", sampling.method), ("redrawn every", every), ("seed", str(sampling.seed))]
    if sampling.method in ("weighted", "top"):
        facts += [("goes by", sampling.metric), ("alpha", f"{sampling.alpha:g}")]
        facts.append(("boosting", f"{sampling.boost:g}" if sampling.boost else "none"))
    if sampling.pool is not None:
        facts.append(("drawn across", counted(len(sampling.pool), "layer")))
        facts.append(("planned draws", f"{len(sampling.draws or ()):,}"))
    return tuple(facts)
