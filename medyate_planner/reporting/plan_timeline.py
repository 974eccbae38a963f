"""What a planned step holds at each moment, found from the plan alone: its model is built by name, without weights."""

from __future__ import annotations

from dataclasses import dataclass

from medyate_planner.errors import MedyateError
from medyate_planner.memory.moments import Category
from medyate_planner.planning.plan import Plan
from medyate_planner.reporting.gather import lean_step
from medyate_planner.reporting.view import ReportedTimeline

BY_NAME = ("torchvision:", "timm:")  # and the zoo: what can be built without weights and without anybody's code
_FOR_INFERENCE = (Category.WEIGHTS, Category.INPUTS, Category.ACTIVATIONS, Category.ACTIVATION_GRADIENTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTimeline:
    """The moments of a planned step in the categories that the plan's budget counts; without them, the reason.

    Of a plan with draws it is interval 0's. `limited`: the budget is a limit of every moment (not in scope `update`).
    """

    moments: ReportedTimeline | None = None
    reason: str = ""
    limited: bool = True


def timeline_of(plan: Plan) -> PlanTimeline:
    """Run a step of the plan on fake tensors, if its model has a name that we can build it by.

    A plan may come from somebody else: no factory or loss of theirs is imported to draw a page.
    """
    spec = plan.model.spec
    if spec is None:
        return PlanTimeline(reason="the plan was made for a model in Python")
    if not _is_by_name(spec):
        return PlanTimeline(reason=f"only models of the zoo, torchvision and timm are built for a page, not {spec}")
    if ":" in plan.loss:
        return PlanTimeline(reason=f"the loss {plan.loss} is somebody's code, which is not run for a page")
    try:
        return PlanTimeline(moments=_counted(_dry(plan), plan), limited=plan.scope != "update")
    except (MedyateError, RuntimeError) as error:  # torch's own, of a model that can not be that large
        return PlanTimeline(reason=str(error).partition("\n")[0])


def _is_by_name(spec: str) -> bool:
    from medyate_planner.models import ZOO

    return spec in ZOO or spec.startswith(BY_NAME)


def _dry(plan: Plan) -> ReportedTimeline:
    from medyate_planner.models import load_model
    from medyate_planner.subject import subject_for
    from medyate_planner.training.dryrun import dry_run

    facts = plan.model
    loaded = load_model(
        facts.spec or "",
        num_classes=facts.num_classes,
        input_shape=facts.input_shape,
        dtype=plan.dtype,
        head=None if facts.head_pattern == "none" else facts.head_pattern,
        allocate=False,
    )
    subject = subject_for(loaded.model, plan)
    dry = dry_run(
        subject.traced,
        subject.graph,
        plan.updates(),
        subject.loss.function,
        subject.loss.make_target,
        mode=subject.mode,
        timeline=True,
    )
    return lean_step("plan", dry).timeline


def _counted(line: ReportedTimeline, plan: Plan) -> ReportedTimeline:
    """The timeline with the categories alone that the plan's scope counts."""
    left_out = set(_FOR_INFERENCE)
    if plan.scope == "peak":
        left_out = {Category.WEIGHTS} if plan.weights_in == "flash" else set()
    kept = [index for index, name in enumerate(line.categories) if Category(name) not in left_out]
    rows = tuple(tuple(row[index] for index in kept) for row in line.live_bytes)
    totals = [sum(row) for row in rows]
    return ReportedTimeline(
        categories=tuple(line.categories[index] for index in kept),
        phase=line.phase,
        operator=line.operator,
        module=line.module,
        source=line.source,
        live_bytes=rows,
        peak_index=totals.index(max(totals)),
    )
