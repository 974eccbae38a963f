"""A plan as a figure for papers, with matplotlib (the extra `report`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medyate_planner.planning.plan import Plan
from medyate_planner.planning.summary import quota_range, quota_text
from medyate_planner.reporting.figures import check_available, save
from medyate_planner.reporting.tables import safe
from medyate_planner.units import format_bytes

_ALL, _QUOTA, _HEAD = "#e3e6ea", "#0072b2", "#8c8c8c"
_ROW_INCHES, _MOST_INCHES = 0.19, 200


def draw_plan(plan: Plan, path: Path, form: str) -> None:
    """Quotas in forward order, as a share of each layer's channels; `form` is png or svg."""
    check_available()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "medyate"}):  # the same file every time
        height = min(1.3 + _ROW_INCHES * max(len(plan.layers), 4), _MOST_INCHES)
        figure = Figure(figsize=(5.2, height), layout="constrained")
        axis = figure.subplots()
        _bars(axis, plan)
        spec = safe(plan.model.spec or "model")
        title = f"{spec}, batch {plan.batch_size}: {format_bytes(plan.used_bytes)} of {format_bytes(plan.budget_bytes)}"
        axis.set_title(f"{title} (scope {plan.scope})".replace("$", r"\$"), fontsize=9)
        save(figure, path, form)


def _bars(axis: Any, plan: Plan) -> None:
    rows = range(len(plan.layers))
    axis.barh(rows, [1.0] * len(rows), color=_ALL, height=0.7)
    shares = [quota_range(plan, layer)[1] / layer.channels for layer in plan.layers]
    colours = [_HEAD if layer.head else _QUOTA for layer in plan.layers]
    axis.barh(rows, shares, color=colours, height=0.7)
    for row, layer in zip(rows, plan.layers, strict=True):
        axis.text(1.01, row, quota_text(plan, layer), fontsize=6, va="center")
    names = [safe(layer.name) + (" (head)" if layer.head else "") for layer in plan.layers]
    axis.set_yticks(rows, [name.replace("$", r"\$") for name in names], fontsize=6)
    axis.margins(y=0.01)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.22)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"], fontsize=7)
    axis.set_xlabel("channels trained at a time, of the layer's", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
