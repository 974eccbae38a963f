"""A plan's bytes against its budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from medyate_planner.memory.moments import Category
from medyate_planner.planning.plan import Plan
from medyate_planner.reporting.page import Cell, Part, Table, bytes_cell
from medyate_planner.reporting.page_sections import css_class, meaning_of
from medyate_planner.reporting.plan_timeline import PlanTimeline
from medyate_planner.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetBar:
    """What is used, in parts that add up to it, and the budget: places are percent of the larger of the two."""

    parts: tuple[Part, ...]
    budget_at: float
    description: str
    note: str


def budget_bar(plan: Plan, timeline: PlanTimeline) -> BudgetBar:
    """The parts are those of the largest moment where that is known, else all as one."""
    amounts, note = _parts(plan, timeline)
    used = sum(amount for _, _, amount in amounts)
    scale = max(used, plan.budget_bytes)
    parts, before = [], 0
    for css, meaning, amount in amounts:
        start, width = round(100 * before / scale, 3), round(100 * amount / scale, 3)
        parts.append(Part(css=css, meaning=meaning, cell=bytes_cell(amount), start=start, width=width))
        before += amount
    listed = ", ".join(f"{part.meaning} {part.cell.text}" for part in parts)
    return BudgetBar(
        parts=tuple(parts),
        budget_at=round(100 * plan.budget_bytes / scale, 3),
        description=f"Of a budget of {plan.budget_bytes:,} B used {used:,} B: {listed}",
        note=note,
    )


def _parts(plan: Plan, timeline: PlanTimeline) -> tuple[list[tuple[str, str, int]], str]:
    figures = plan.predicted
    if plan.scope == "update":
        state = figures.optimizer_bytes + figures.copy_bytes
        gradients = figures.update_bytes - figures.selected_bytes - state
        found = _named(
            (Category.KEPT_SELECTED, figures.selected_bytes),
            (Category.WEIGHT_GRADIENTS, gradients),
            (Category.OPTIMIZER_STATE, figures.optimizer_bytes),
            (Category.WORKING_COPIES, figures.copy_bytes),
        )
        if gradients >= 0 and plan.sampling.draws is None:
            return found, "A plain sum over the whole step."
    moments = timeline.moments
    if timeline.limited and moments is not None and moments.peak_bytes == plan.used_bytes:
        parts = [(css_class(name), meaning_of(name), amount) for name, amount in moments.at_peak.items() if amount]
        return parts, "At the largest moment of the step."
    return (
        [("kept_selected", "used", plan.used_bytes)],
        "Used in all: what it consists of at its largest moment is known only with the model.",
    )


def _named(*amounts: tuple[Category, int]) -> list[tuple[str, str, int]]:
    return [(category.value, category.meaning, amount) for category, amount in amounts if amount]


def predicted_table(plan: Plan) -> Table:
    """Every predicted figure, each at its own largest, with bars against the budget."""
    figures = plan.predicted
    of_training: Sequence[tuple[str, int | None]] = (
        ("training", figures.training_bytes),
        ("saved for backward", figures.saved_bytes),
        ("selected activations", figures.selected_bytes),
        ("pass-through", figures.passthrough_bytes),
        ("loss", figures.loss_bytes),
        ("gradients alive at once", figures.gradients_bytes),
        ("indices", figures.index_bytes or None),
        ("optimizer state", figures.optimizer_bytes or None),
        ("working copies", figures.copy_bytes or None),
        ("update", figures.update_bytes),
        ("live peak", figures.live_peak_bytes),
        ("live peak, closed-form bound", figures.live_peak_bound_bytes),
        ("weights in flash", figures.weights_in_flash_bytes or None),
        ("Sparse Update's own accounting", figures.sparse_update_bytes),
    )
    limited = {"update": "update", "training": "training", "peak": "live peak"}[plan.scope]
    rows = [
        (_name(name, name == limited), _amount(amount, plan.budget_bytes))
        for name, amount in of_training
        if amount is not None
    ]
    return Table(
        id="predicted",
        caption="Predicted bytes of one step, each figure at its own largest moment",
        columns=("figure", "bytes"),
        rows=tuple(rows),
    )


def _name(name: str, limited: bool) -> Cell:
    return Cell(text=name, note="what the budget limits" if limited else "")


def _amount(amount: int, budget_bytes: int) -> Cell:
    share = amount / budget_bytes
    relative = f"{share:.1%} of the budget" if share < 2 else f"{share:.1f} times the budget"
    cell = bytes_cell(amount, of=budget_bytes, note=f"{format_bytes(amount)} · {relative}")
    return replace(cell, bar_percent=min(cell.bar_percent or 0.0, 100.0))
