"""`medyate verify`"""

from __future__ import annotations

from pathlib import Path

from medyate_planner.cli.options import OutputOptions
from medyate_planner.cli.output import emit_json, show


def verify(
    plan: Path,
    /,
    *,
    weights: Path | None = None,
    batch_size: int | None = None,
    out: OutputOptions = OutputOptions(),
) -> int:
    """Prove a plan: predicted against measured bytes of one real step on this machine; exit 1 if they differ.

    Example: medyate verify plan.json

    Parameters
    ----------
    plan
        A file from `medyate plan`.
    weights
        Weights file, where it moved since the plan was made.
    batch_size
        Only to check: must be the plan's.
    """
    from medyate_planner.api import verify as prove
    from medyate_planner.cli.rebuild import model_of
    from medyate_planner.errors import InputError
    from medyate_planner.planning.plan import Plan
    from medyate_planner.reporting.text import render_verification
    from medyate_planner.subject import subject_for

    loaded_plan = Plan.load(plan)
    if batch_size not in (None, loaded_plan.batch_size):
        raise InputError(f"--batch-size {batch_size}: the plan was made for {loaded_plan.batch_size}; plan again")
    loaded = model_of(loaded_plan, weights=weights)
    result = prove(subject_for(loaded.model, loaded_plan), loaded_plan)
    if out.json:
        emit_json(result.to_dict())
    else:
        show(render_verification(result))
    return 0 if result.ok else 1
