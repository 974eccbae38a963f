"""The page of a plan: plain data first (`plan_page_of`), then the template."""

from __future__ import annotations

from dataclasses import dataclass

from medyate_planner.planning.plan import Plan
from medyate_planner.planning.summary import sentences
from medyate_planner.reporting.html import axis_ticks, fill_template
from medyate_planner.reporting.page import Bar, Front, Part, Table
from medyate_planner.reporting.plan_budget import BudgetBar, budget_bar, predicted_table
from medyate_planner.reporting.plan_layers import HEAD_PART, QUOTA_PART, left_out_table, quota_bars, trained_table
from medyate_planner.reporting.plan_timeline import PlanTimeline, timeline_of
from medyate_planner.reporting.plan_words import facts_of, sampling_of, warnings_of
from medyate_planner.reporting.step_drawing import StepDrawing, step_drawing


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPage(Front):
    """Everything the page shows."""

    budget: BudgetBar
    predicted: Table
    drawing: StepDrawing | None
    no_drawing: str
    bars: tuple[Bar, ...]
    bar_legend: tuple[Part, ...]
    layers: Table
    left_out: Table | None
    biases_alone: tuple[str, ...]
    sampling: tuple[tuple[str, str], ...]


def render_plan_html(plan: Plan, timeline: PlanTimeline | None = None) -> str:
    """Draw a plan as one self-contained page; the same plan gives the same bytes.

    Args:
        timeline: What `timeline_of` found; it is asked if none is given, which builds the model if it has a name.
    """
    found = timeline_of(plan) if timeline is None else timeline
    return fill_template("plan.html", styles=("page.css", "charts.css", "plan.css"), page=plan_page_of(plan, found))


def plan_page_of(plan: Plan, timeline: PlanTimeline) -> PlanPage:
    """Everything the page shows, as plain data."""
    moments = timeline.moments
    trained = {layer.name for layer in plan.layers}
    budget_bytes = plan.budget_bytes if timeline.limited else None
    return PlanPage(
        kicker="Plan",
        title=plan.model.spec or "a model made in Python",
        lead=sentences(plan),
        facts=facts_of(plan),
        warnings=warnings_of(plan),
        budget=budget_bar(plan, timeline),
        predicted=predicted_table(plan),
        drawing=None
        if moments is None
        else step_drawing(moments, budget_bytes, axis_ticks(max(moments.peak_bytes, budget_bytes or 0))),
        no_drawing=timeline.reason,
        bars=quota_bars(plan),
        bar_legend=_legend(plan),
        layers=trained_table(plan),
        left_out=left_out_table(plan),
        biases_alone=tuple(name for name in plan.biases if name not in trained),
        sampling=sampling_of(plan),
    )


def _legend(plan: Plan) -> tuple[Part, ...]:
    head = any(layer.head for layer in plan.layers)
    return (QUOTA_PART, HEAD_PART) if head else (QUOTA_PART,)
