"""A training run as a figure for papers, with matplotlib (the extra `report`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medyate_planner.errors import InputError
from medyate_planner.reporting.figures import check_available, save
from medyate_planner.reporting.run_view import RunView
from medyate_planner.reporting.tables import safe
from medyate_planner.units import format_bytes

_LOSS, _TEST, _ACCURACY, _MEMORY, _BUDGET = "#0072b2", "#d55e00", "#009e73", "#332288", "#d55e00"


def draw_run(run: RunView, path: Path, form: str) -> None:
    """Loss, accuracy, and measured memory under the budget, by epoch; `form` is png or svg.

    Raises:
        InputError: no epoch is done yet.
    """
    if not run.epochs:
        raise InputError("the run has no epoch yet, so there is nothing to draw")
    check_available()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "medyate"}):  # the same file every time
        figure = Figure(figsize=(10.2, 3.0), layout="constrained")
        loss, accuracy, memory = figure.subplots(1, 3)
        _losses(loss, run)
        _accuracy(accuracy, run)
        _memory(memory, run)
        for axis in (loss, accuracy, memory):
            axis.set_xlabel("epoch", fontsize=8)
            axis.locator_params(axis="x", integer=True, nbins=8)
            axis.tick_params(labelsize=7)
            axis.grid(visible=True, linewidth=0.3)
        title = f"{safe(run.plan.model.spec or 'model')}, batch {run.plan.batch_size}, {safe(run.plan.strategy)}"
        figure.suptitle(title.replace("$", r"\$"), fontsize=9)
        save(figure, path, form)


def _losses(axis: Any, run: RunView) -> None:
    places = [epoch.epoch for epoch in run.epochs]
    _curve(axis, places, [epoch.train_loss for epoch in run.epochs], _LOSS, "train")
    known = [epoch for epoch in run.epochs if epoch.test_loss is not None]
    if known:
        _curve(axis, [epoch.epoch for epoch in known], [epoch.test_loss for epoch in known], _TEST, "test")
    axis.set_title("loss", fontsize=8)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=7, frameon=False)


def _accuracy(axis: Any, run: RunView) -> None:
    known = [epoch for epoch in run.epochs if epoch.test_accuracy is not None]
    _curve(axis, [epoch.epoch for epoch in known], [epoch.test_accuracy for epoch in known], _ACCURACY, "")
    axis.set_title("test accuracy" if known else "test accuracy (not measured)", fontsize=8)


def _memory(axis: Any, run: RunView) -> None:
    """The figure that the budget limits; in scope `update`, which is not measured, training memory without a line."""
    plan, places = run.plan, [epoch.epoch for epoch in run.epochs]
    flash = plan.predicted.weights_in_flash_bytes
    if plan.scope == "peak":
        amounts, title = [epoch.measured_live_peak_bytes for epoch in run.epochs], "measured live peak"
    else:
        amounts, title = [epoch.measured_training_bytes for epoch in run.epochs], "measured training memory"
    _curve(axis, places, amounts, _MEMORY, "")
    if plan.scope != "update":
        limit = plan.budget_bytes + (flash if plan.scope == "peak" else 0)
        name = "budget and weights in flash" if plan.scope == "peak" and flash else "budget"
        label = f"{name}, {format_bytes(limit)}"
        axis.axhline(limit, color=_BUDGET, linewidth=0.9, linestyle="--", label=label)
        axis.legend(fontsize=7, frameon=False, loc="lower right")
    axis.yaxis.set_major_formatter(lambda amount, _place: format_bytes(round(amount)).replace(".0 ", " "))
    axis.set_title(title, fontsize=8)
    axis.set_ylim(bottom=0)
    axis.margins(y=0.12)


def _curve(axis: Any, places: list[int], values: list[Any], colour: str, label: str) -> None:
    axis.plot(places, values, marker="o", markersize=3, linewidth=1.2, color=colour, label=label or None)
