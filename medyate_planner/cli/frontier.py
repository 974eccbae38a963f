"""`medyate plan --budgets`: what each of several budgets buys."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medyate_planner.cli.options import OutputOptions, check_output
from medyate_planner.cli.output import emit_json, say, show
from medyate_planner.cli.progress import progress_bar

if TYPE_CHECKING:
    from medyate_planner.importance.energy import Importance
    from medyate_planner.models import LoadedModel
    from medyate_planner.planning.decision import Strategy
    from medyate_planner.planning.frontier import Frontier
    from medyate_planner.planning.plan import ImportanceRef, Sampling
    from medyate_planner.subject import Subject


def check_frontier(budgets: str, output: Path | None, plans: Path | None, *, force: bool) -> tuple[int, ...]:
    """The budgets; raises `InputError` before any work is done if they, or the files to write, are not usable."""
    from medyate_planner.errors import InputError
    from medyate_planner.planning.frontier import parse_budgets
    from medyate_planner.reporting.export import check_ending

    amounts = parse_budgets(budgets)
    if output is not None:
        check_output(output, force=force)
        check_ending(output)
    if plans is not None:
        if plans.exists() and not (plans.is_dir() and os.access(plans, os.W_OK)):
            raise InputError(f"{plans}: expected a folder that may be written to; pass another --plans")
        for amount in amounts:
            check_output(plan_file(plans, amount), force=force)
    return amounts


def plan_file(folder: Path, budget_bytes: int) -> Path:
    """Where the plan of one budget is written."""
    return folder / f"plan-{budget_bytes}B.json"


def run_frontier(
    subject: Subject,
    loaded: LoadedModel,
    request_kwargs: Mapping[str, Any],
    strategy: str | Strategy,
    budgets: str,
    output: Path | None,
    plans: Path | None,
    sampling: Sampling,
    model_facts: Mapping[str, Any],
    reference: ImportanceRef | None,
    importance: Importance | None,
    out: OutputOptions,
) -> int:
    """Trace the frontier, write what was asked for, print the rest."""
    from medyate_planner.planning.plan import ImportanceRef
    from medyate_planner.reporting.frontier_text import render_frontier
    from medyate_planner.sweep import as_report, trace_budgets

    amounts = check_frontier(budgets, output, plans, force=out.force)
    with progress_bar(len(amounts), "budgets") as update:
        traced = trace_budgets(
            subject, budgets, importance, strategy=strategy, request=request_kwargs,
            on_point=lambda done, of: update(done, "", total=of),
        )  # fmt: skip
    named = reference or ImportanceRef(source=traced.request.importance.source)
    made = as_report(subject, traced, spec=loaded.spec, reference=named)
    if plans is not None:
        for file in _write_plans(subject, traced, plans, sampling, model_facts, named, force=out.force):
            say(f"wrote {file}")
    if output is not None:
        made.save(output, force=out.force)
        say(f"wrote {output}")
    if out.json:
        emit_json(made.to_dict())
    else:
        show(render_frontier(made))
    return 0


def _write_plans(
    subject: Subject,
    traced: Frontier,
    folder: Path,
    sampling: Sampling,
    model_facts: Mapping[str, Any],
    reference: ImportanceRef,
    *,
    force: bool,
) -> Iterator[Path]:
    from medyate_planner.sweep import plans_of

    for plan in plans_of(subject, traced, sampling, model_facts, reference):
        yield plan.save(plan_file(folder, plan.budget_bytes), force=force)
