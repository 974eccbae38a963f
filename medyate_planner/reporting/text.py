"""Views as text for a terminal. Sums nothing: every number comes from the view."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medyate_planner.reporting.explanation_text import render_explanation
from medyate_planner.reporting.tables import line, put, table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from medyate_planner.importance.metrics import LayerScore
    from medyate_planner.planning.plan import Plan, PlannedLayer, Predicted
    from medyate_planner.reporting.verification import Verification


def render_plan(plan: Plan) -> Iterable[RenderableType]:
    """The decision, its figures, and the layers it updates."""
    figures = plan.predicted
    used = plan.used_bytes
    yield line(
        f"{plan.model.spec or 'model'}: budget {plan.budget_bytes:,} B (scope {plan.scope}, batch {plan.batch_size}), "
        f"used {used:,} B ({used / plan.budget_bytes:.1%}); strategy {plan.strategy}, {plan.status}, "
        f"gap {plan.gap_ratio:.2e}"
    )
    interpolated = f", {plan.interpolation_loss:.2g} above the solver's" if plan.interpolation_loss else ""
    yield line(
        f"importance: {plan.importance.source}; objective {plan.objective_name} of {plan.metric} on {plan.curve}: "
        f"{plan.objective:.6g}{interpolated}"
    )
    if plan.autocast is not None:
        yield line(f"under autocast {plan.autocast}, weights and their gradients in {plan.dtype}")
    if plan.sampling.draws is not None:
        yield line(
            f"channels are drawn across {len(plan.sampling.pool or ())} layers in each interval, "
            f"{len(plan.sampling.draws)} draws are planned; figures are the largest over them"
        )
    if plan.sampling.interval_steps is not None:
        yield line(f"channels are redrawn every {plan.sampling.interval_steps:,} steps")
    yield _figures(figures)
    if figures.flops and figures.full_flops:
        yield line(
            f"operations of one step: {figures.flops / 1e6:,.1f} MFLOP, {figures.flops / figures.full_flops:.1%} of "
            "full fine-tuning's"
        )
    yield _layers(plan)
    alone = [name for name in plan.biases if name not in {layer.name for layer in plan.layers}]
    if alone:
        yield line(f"biases alone: {', '.join(alone)}")
    if plan.explanation is not None:
        yield from render_explanation(plan.explanation)


def _figures(figures: Predicted) -> Table:
    made = table("Predicted memory of one step", ("", "left"), ("bytes", "right"))
    for name, amount in (
        ("training (the largest moment)", figures.training_bytes),
        ("  saved for backward", figures.saved_bytes),
        ("    selected activations", figures.selected_bytes),
        ("    pass-through", figures.passthrough_bytes),
        ("  loss", figures.loss_bytes),
        ("  gradients alive at once", figures.gradients_bytes),
        ("  indices", figures.index_bytes),
        ("  optimizer state", figures.optimizer_bytes),
        ("  working copies", figures.copy_bytes),
        ("update (sum of gradients and selected activations)", figures.update_bytes),
        ("live peak (weights and inputs included)", figures.live_peak_bytes),
        ("  its closed-form bound", figures.live_peak_bound_bytes),
        ("Sparse Update's own accounting", figures.sparse_update_bytes),
    ):
        if amount is not None:
            put(made, name, f"{amount:,}")
    return made


def _layers(plan: Plan) -> Table:
    layers = table(
        f"Updated: {len(plan.layers)} layers, {len(plan.biases)} biases",
        ("layer", "left"), ("kind", "left"), ("quota", "right"), ("of", "right"), ("share", "right"), ("bias", "left"),
    )  # fmt: skip
    for layer in plan.layers:
        put(
            layers,
            _named(layer),
            layer.kind,
            "drawn" if layer.quota is None else str(layer.quota),
            str(layer.channels),
            "" if layer.quota is None else f"{layer.quota / layer.channels:.0%}",
            "yes" if layer.name in plan.biases or layer.head else "",
        )
    return layers


def _named(layer: PlannedLayer) -> str:
    """A layer in a table; of the head, that all of it is trained."""
    if not layer.head:
        return layer.name
    return "head (in full)" if layer.name == "head" else f"{layer.name} (head, in full)"


def render_ranking(source: str, metric: str, ranking: Sequence[LayerScore], most: int = 15) -> Iterable[RenderableType]:
    """The layers that matter most."""
    made = table(
        f"Layers by {metric} ({source})", ("", "right"), ("layer", "left"), (metric, "right"), ("share", "right")
    )
    for place, entry in enumerate(ranking[:most], start=1):
        put(made, str(place), entry.name, f"{entry.score:.4g}", f"{entry.share:.1%}")
    yield made
    if len(ranking) > most:
        yield line(f"… and {len(ranking) - most} more")


def render_verification(result: Verification) -> Iterable[RenderableType]:
    """Predicted, dry run and measured beside each other."""
    made = table(
        "Predicted against measured, bytes",
        ("", "left"), ("predicted", "right"), ("dry run", "right"), ("measured", "right"), ("difference", "right"),
    )  # fmt: skip
    for row in result.categories:
        put(
            made,
            row.name,
            f"{row.predicted_bytes:,}",
            f"{row.dry_run_bytes:,}",
            f"{row.measured_bytes:,}",
            f"{row.measured_bytes - row.predicted_bytes:+,}" if not row.agrees else "0",
        )
    yield made
    yield line(
        f"{'OK' if result.ok else 'FAILED'}: measured {result.scope_bytes:,} B of {result.budget_bytes:,} B "
        f"(scope {result.scope})"
    )


def render_run(metrics: Sequence[Mapping[str, Any]], budget_bytes: int) -> Iterable[RenderableType]:
    """One row per epoch."""
    made = table(
        f"Training, measured against a budget of {budget_bytes:,} B",
        ("epoch", "right"), ("train loss", "right"), ("test accuracy", "right"), ("training B", "right"),
        ("live peak B", "right"), ("seconds", "right"),
    )  # fmt: skip
    for row in metrics:
        accuracy = row["test_accuracy"]
        put(
            made,
            str(row["epoch"]),
            f"{row['train_loss']:.4f}",
            "-" if accuracy is None else f"{accuracy:.4f}",
            f"{row['measured_training_bytes']:,}",
            f"{row['measured_live_peak_bytes']:,}",
            f"{row['seconds']:.1f}",
        )
    yield made


def render_comparison(rows: Sequence[tuple[str, float, int, float]]) -> Iterable[RenderableType]:
    """Name, test accuracy, measured training bytes and seconds per epoch; bytes also relative to the largest."""
    made = table(
        "Accuracy and measured training memory",
        ("", "left"), ("test accuracy", "right"), ("training memory B", "right"), ("of the largest", "right"),
        ("seconds per epoch", "right"),
    )  # fmt: skip
    largest = max(amount for _, _, amount, _ in rows)
    for name, accuracy, amount, seconds in rows:
        put(made, name, f"{accuracy:.3f}", f"{amount:,}", f"{amount / largest:.2%}", f"{seconds:.1f}")
    yield made
