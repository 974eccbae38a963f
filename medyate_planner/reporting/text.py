"""Views as text for a terminal. Sums nothing: every number comes from the view."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from medyate_planner.units import format_bytes, format_count

if TYPE_CHECKING:
    from rich.console import RenderableType

    from medyate_planner.importance.metrics import LayerScore
    from medyate_planner.planning.plan import Plan
    from medyate_planner.reporting.verification import Verification
    from medyate_planner.reporting.view import MemoryReport


def render_report(report: MemoryReport) -> Iterable[RenderableType]:
    """Totals, then one row per layer."""
    full = report.full
    yield _line(
        f"{report.model.spec}: {format_count(report.model.num_parameters)} parameters, batch {report.batch_size}, "
        f"{report.dtype}, fingerprint {report.model.fingerprint[:12]}"
    )
    totals = _table("Memory of one step", ("", "left"), ("bytes", "right"), ("", "right"))
    rows = [
        ("inference: live peak", report.inference.live_peak_bytes),
        ("full fine-tuning (PyTorch): saved for backward", full.saved_bytes),
        ("full fine-tuning (PyTorch): kept by the loss", full.loss_bytes),
        ("full fine-tuning (PyTorch): weight gradients", full.gradients_bytes),
        (f"full fine-tuning (PyTorch): {full.optimizer} state", full.optimizer_bytes),
        ("full fine-tuning (PyTorch): live peak", full.live_peak_bytes),
        ("weights and buffers", full.weights_bytes),
    ]
    for name, amount in rows:
        totals.add_row(name, f"{amount:,}", format_bytes(amount))
    yield totals
    layers = _table(
        "Layers: what one input channel costs to train, and what it costs to reach the layer",
        ("layer", "left"), ("kind", "left"), ("channels", "right"), ("weight B", "right"),
        ("gradient B/ch", "right"), ("saved B/ch", "right"), ("pass-through B", "right"),
    )  # fmt: skip
    for layer in report.layers:
        layers.add_row(
            Text(_safe(layer.name) + (" (head)" if layer.head else "")),
            layer.kind,
            str(layer.channels),
            f"{layer.weight_bytes:,}",
            f"{layer.gradient_bytes_per_channel:,}",
            f"{layer.saved_bytes_per_channel:,}",
            f"{layer.passthrough_bytes:,}",
        )
    yield layers


def render_plan(plan: Plan) -> Iterable[RenderableType]:
    """The decision, its figures, and the layers it updates."""
    figures = plan.predicted
    used = figures.update_bytes if plan.scope == "update" else figures.training_bytes
    yield _line(
        f"{plan.model.spec or 'model'}: budget {plan.budget_bytes:,} B (scope {plan.scope}, batch {plan.batch_size}), "
        f"used {used:,} B ({used / plan.budget_bytes:.1%}); strategy {plan.strategy}, {plan.status}, "
        f"gap {plan.gap_ratio:.2e}"
    )
    yield _line(
        f"importance: {plan.importance.source}; objective {plan.objective_name} on {plan.curve}: {plan.objective:.6g}"
    )
    table = _table("Predicted memory of one step", ("", "left"), ("bytes", "right"))
    for name, amount in (
        ("training (the largest moment)", figures.training_bytes),
        ("  saved for backward", figures.saved_bytes),
        ("    selected activations", figures.selected_bytes),
        ("    pass-through", figures.passthrough_bytes),
        ("  loss", figures.loss_bytes),
        ("  gradients alive at once", figures.gradients_bytes),
        ("  indices", figures.index_bytes),
        ("  optimizer state", figures.optimizer_bytes),
        ("update (sum of gradients and selected activations)", figures.update_bytes),
        ("live peak (weights and inputs included)", figures.live_peak_bytes),
    ):
        table.add_row(name, f"{amount:,}")
    yield table
    layers = _table(
        f"Updated: {len(plan.layers)} layers, {len(plan.biases)} biases",
        ("layer", "left"), ("kind", "left"), ("quota", "right"), ("of", "right"), ("share", "right"), ("bias", "left"),
    )  # fmt: skip
    for layer in plan.layers:
        layers.add_row(
            Text(_safe(layer.name) + (" (head, in full)" if layer.head else "")),
            layer.kind,
            str(layer.quota),
            str(layer.channels),
            f"{layer.quota / layer.channels:.0%}",
            "yes" if layer.name in plan.biases or layer.head else "",
        )
    yield layers


def render_ranking(source: str, metric: str, ranking: Sequence[LayerScore], most: int = 15) -> Iterable[RenderableType]:
    """The layers that matter most."""
    table = _table(
        f"Layers by {metric} ({source})", ("", "right"), ("layer", "left"), (metric, "right"), ("share", "right")
    )
    for place, entry in enumerate(ranking[:most], start=1):
        table.add_row(str(place), Text(_safe(entry.name)), f"{entry.score:.4g}", f"{entry.share:.1%}")
    yield table
    if len(ranking) > most:
        yield _line(f"… and {len(ranking) - most} more")


def render_verification(result: Verification) -> Iterable[RenderableType]:
    """Predicted, dry run and measured beside each other."""
    table = _table(
        "Predicted against measured, bytes",
        ("", "left"), ("predicted", "right"), ("dry run", "right"), ("measured", "right"), ("difference", "right"),
    )  # fmt: skip
    for row in result.categories:
        table.add_row(
            row.name,
            f"{row.predicted_bytes:,}",
            f"{row.dry_run_bytes:,}",
            f"{row.measured_bytes:,}",
            f"{row.measured_bytes - row.predicted_bytes:+,}" if not row.agrees else "0",
        )
    yield table
    yield _line(
        f"{'OK' if result.ok else 'FAILED'}: measured {result.scope_bytes:,} B of {result.budget_bytes:,} B "
        f"(scope {result.scope})"
    )


def render_run(metrics: Sequence[Mapping[str, Any]], budget_bytes: int) -> Iterable[RenderableType]:
    """One row per epoch."""
    table = _table(
        f"Training, measured against a budget of {budget_bytes:,} B",
        ("epoch", "right"), ("train loss", "right"), ("test accuracy", "right"), ("training B", "right"),
        ("live peak B", "right"), ("seconds", "right"),
    )  # fmt: skip
    for line in metrics:
        accuracy = line["test_accuracy"]
        table.add_row(
            str(line["epoch"]),
            f"{line['train_loss']:.4f}",
            "-" if accuracy is None else f"{accuracy:.4f}",
            f"{line['measured_training_bytes']:,}",
            f"{line['measured_live_peak_bytes']:,}",
            f"{line['seconds']:.1f}",
        )
    yield table


def render_comparison(rows: Sequence[tuple[str, float, int, float]]) -> Iterable[RenderableType]:
    """Name, test accuracy, measured training bytes and seconds per epoch; bytes also relative to the largest."""
    table = _table(
        "Accuracy and measured training memory",
        ("", "left"), ("test accuracy", "right"), ("training memory B", "right"), ("of the largest", "right"),
        ("seconds per epoch", "right"),
    )  # fmt: skip
    largest = max(amount for _, _, amount, _ in rows)
    for name, accuracy, amount, seconds in rows:
        table.add_row(name, f"{accuracy:.3f}", f"{amount:,}", f"{amount / largest:.2%}", f"{seconds:.1f}")
    yield table


def _table(title: str, *columns: tuple[str, str]) -> Table:
    heading = Text(title, no_wrap=True, overflow="ignore")  # may be wider than its table
    table = Table(title=heading, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name, justify in columns:
        table.add_column(name, justify="right" if justify == "right" else "left", no_wrap=True)
    return table


def _line(text: str) -> Text:
    return Text(_safe(text))


def _safe(text: str) -> str:
    """Without control characters, which a module's name may hold."""
    return "".join(c if c.isprintable() else "?" for c in text)
