"""`medyate plan --check`: a plan that was edited by hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medyate_planner.cli.options import OutputOptions, check_output
from medyate_planner.cli.output import emit_json, say, show

if TYPE_CHECKING:
    from medyate_planner.planning.plan import Plan


def run_check(file: Path, output: Path | None, importance: Path | None, out: OutputOptions) -> int:
    """Say whether an edited plan meets its budget and what is stale in it; write it corrected where it does."""
    from medyate_planner.cli.rebuild import model_of, read_importance
    from medyate_planner.plancheck import check_plan
    from medyate_planner.planning.plan import Plan
    from medyate_planner.reporting.check_text import render_check
    from medyate_planner.subject import subject_for

    check_output(output, force=out.force)
    plan = Plan.load(file)
    path, valued = _importance_of(plan, file, importance, needed=output is not None)
    by_weights = plan.importance.file is None and importance is None
    loaded = model_of(plan, allocate=by_weights)
    say(f"model: {loaded.spec}, weights: {loaded.weights_source}")
    subject = subject_for(loaded.model, plan)
    found = check_plan(subject, plan, read_importance(path, subject), value=valued)
    if output is not None and found.ok:
        found.corrected.save(output, force=out.force)
        say(f"wrote {output}")
    elif output is not None:
        say(f"{output} is not written: the plan does not keep its limits")
    emit_json({**found.to_dict(), "objective_checked": valued}) if out.json else show(render_check(found))
    return 0 if found.ok else 1


def _importance_of(plan: Plan, file: Path, given: Path | None, *, needed: bool) -> tuple[Path | None, bool]:
    """The file that the objective goes by, and whether it can be recomputed; a corrected plan can not do without."""
    from medyate_planner.cli.rebuild import importance_path
    from medyate_planner.errors import InputError

    try:
        return importance_path(plan, file, given), True
    except InputError as error:
        if needed or given is not None:
            raise
        say(f"the objective is not recomputed: {error.message}")
        return None, False
