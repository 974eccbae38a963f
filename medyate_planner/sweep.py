"""Plans over a range of budgets: `frontier`, and the certified plan of each of its points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from medyate_planner.api import request_of
from medyate_planner.importance.energy import Importance
from medyate_planner.planfile import plan_from
from medyate_planner.planning.frontier import Frontier, checked_budgets, parse_budgets, trace_frontier
from medyate_planner.planning.plan import ImportanceRef, Plan, Sampling
from medyate_planner.planning.strategies import Strategy
from medyate_planner.reporting.frontier_view import FrontierReport, frontier_report
from medyate_planner.strategy import chosen_strategy
from medyate_planner.subject import Subject, as_subject
from medyate_planner.trace import ExampleInputs
from medyate_planner.units import parse_bytes


def frontier(
    model: nn.Module | Subject,
    example_inputs: ExampleInputs | None = None,
    budgets: str | Sequence[str | int] = "64kB:2MB:12",
    importance: Importance | None = None,
    *,
    strategy: str | Strategy = "optimal",
    spec: str | None = None,
    importance_file: ImportanceRef | None = None,
    request: Mapping[str, Any] | None = None,
    on_point: Callable[[int, int], None] = lambda _done, _of: None,
    **options: Any,
) -> FrontierReport:
    """What each budget buys: value against budget, the smallest budget, and the knee of the curve.

    Args:
        model: A module (on the meta device too), or what `subject_of` returned.
        example_inputs: One batch, needed for a module; its batch size is what is planned for.
        budgets: "64kB:2MB:12" (geometrically spaced), "64kB,128kB,1MB", or a sequence of bytes or such amounts.
        importance: From `rank`; without it, mean squared weight per channel.
        strategy: As for `plan`.
        spec: What to call the model.
        importance_file: Name and hash of the importance file.
        request: Further keys of `PlanRequest`, as for `plan`.
        on_point: Progress: budgets done, number of budgets.
        options: As `subject_of`.

    Raises:
        InfeasibleBudgetError: not even the largest budget can be met.
        PlanMismatchError: the importance is another model's.
    """
    subject = as_subject(model, example_inputs, options)
    traced = trace_budgets(subject, budgets, importance, strategy=strategy, request=request, on_point=on_point)
    reference = importance_file or ImportanceRef(source=traced.request.importance.source)
    return as_report(subject, traced, spec=spec, reference=reference)


def trace_budgets(
    subject: Subject,
    budgets: str | Sequence[str | int],
    importance: Importance | None = None,
    *,
    strategy: str | Strategy = "optimal",
    request: Mapping[str, Any] | None = None,
    on_point: Callable[[int, int], None] = lambda _done, _of: None,
) -> Frontier:
    """The frontier with its decisions, from which `plans_of` makes plans."""
    decide = chosen_strategy(strategy, importance, subject.mode)
    amounts = read_budgets(budgets)
    asked = request_of(subject, importance, amounts[-1], request or {})
    return trace_frontier(asked, amounts, decide, on_point=on_point)


def as_report(subject: Subject, traced: Frontier, *, spec: str | None, reference: ImportanceRef) -> FrontierReport:
    """A traced frontier of this model as the artefact."""
    return frontier_report(traced, spec=spec, device=subject.traced.device, loss=subject.loss.name, reference=reference)


def plans_of(
    subject: Subject,
    traced: Frontier,
    sampling: Sampling,
    model_facts: Mapping[str, Any],
    reference: ImportanceRef,
) -> Iterator[Plan]:
    """The plan of every feasible budget, each certified as `plan` does.

    Raises:
        CertificationError: closed form and dry run disagree.
    """
    for point in traced.feasible:
        if point.decision is not None:
            asked = replace(traced.request, budget_bytes=point.budget_bytes)
            yield plan_from(subject, asked, point.decision, sampling, model_facts, reference)


def read_budgets(budgets: str | Sequence[str | int]) -> tuple[int, ...]:
    """Budgets in bytes, ascending, from a text or a sequence."""
    if isinstance(budgets, str):
        return parse_budgets(budgets)
    return checked_budgets([parse_bytes(amount, what="budgets") for amount in budgets])
