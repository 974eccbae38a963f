"""`medyate show`"""

from __future__ import annotations

import json as json_format
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from medyate_planner.cli.output import console, emit_json
from medyate_planner.cli.output import show as print_parts

if TYPE_CHECKING:
    from rich.console import RenderableType

    from medyate_planner.reporting.difference import Comparable


def show(
    file: Path | None = None,
    /,
    *,
    diff: tuple[Path, Path] | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    debug: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Show one of our files: report.json, plan.json, frontier.json, importance or delta.safetensors, or a run folder.

    Example: medyate show plan.json

    Parameters
    ----------
    file
        The file, or a run folder.
    diff
        Two plans, frontiers or reports instead of a file: what is otherwise in the second.
    json
        Machine output on stdout.
    debug
        Show the traceback of an error.
    """
    del debug
    from medyate_planner.errors import InputError

    if (file is None) == (diff is None):
        raise InputError("pass a file to show, or two to --diff A B; see `medyate show --help`")
    if diff is not None:
        return _show_difference(*diff, as_json=json)
    assert file is not None
    if file.is_dir():
        return _show_run(file, as_json=json)
    if file.suffix == ".safetensors" and file.exists():
        return _show_tensors(file, as_json=json)
    found = _read(file)
    emit_json(found.to_dict()) if json else print_parts(_render(found))
    return 0


def _read(file: Path) -> Comparable:
    """A plan, a frontier or a report, by its key kind."""
    from medyate_planner.errors import InputError
    from medyate_planner.planning.plan import Plan
    from medyate_planner.reporting.frontier_view import read_frontier
    from medyate_planner.reporting.view import read_report

    if not file.exists():
        raise InputError(f"{file}: no such file")
    data = _read_json(file)
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind == "plan":
        return Plan.from_dict(data, where=str(file))
    if kind == "report":
        return read_report(data, where=str(file))
    if kind == "frontier":
        return read_frontier(data, where=str(file))
    raise InputError(
        f"{file}: expected a report, a plan, a frontier, an importance file or a run folder, got kind {kind!r}"
    )


def _render(found: Comparable) -> Iterable[RenderableType]:
    from medyate_planner.planning.plan import Plan
    from medyate_planner.reporting.frontier_text import render_frontier
    from medyate_planner.reporting.frontier_view import FrontierReport
    from medyate_planner.reporting.report_text import render_report
    from medyate_planner.reporting.text import render_plan

    if isinstance(found, Plan):
        yield from render_plan(found)
    elif isinstance(found, FrontierReport):
        yield from render_frontier(found)
    else:
        yield from render_report(found, width=console().width)


def _show_difference(a: Path, b: Path, *, as_json: bool) -> int:
    from medyate_planner.errors import InputError
    from medyate_planner.reporting.difference import difference_of
    from medyate_planner.reporting.difference_text import render_difference

    for file in (a, b):
        if file.is_dir() or file.suffix == ".safetensors":
            raise InputError(f"{file}: --diff compares plans, frontiers or reports")
    found = difference_of(_read(a), _read(b))
    emit_json(found.to_dict()) if as_json else print_parts(render_difference(found, str(a), str(b)))
    return 0


def _read_json(file: Path) -> Any:
    from medyate_planner.errors import InputError
    from medyate_planner.files import read_text

    try:
        return json_format.loads(read_text(file, what="file"))
    except RecursionError as error:
        raise InputError(f"{file}: nested too deeply to be one of our files") from error
    except json_format.JSONDecodeError as error:
        raise InputError(f"{file}: not complete JSON (line {error.lineno}: {error.msg}); make it again") from error


def _show_tensors(file: Path, *, as_json: bool) -> int:
    """A delta, if it is one, else an importance file."""
    from medyate_planner.reporting.delta_text import render_delta, view_delta
    from medyate_planner.training.delta import Delta, is_delta

    if not is_delta(file):
        return _show_importance(file, as_json=as_json)
    view = view_delta(Delta.load(file))
    emit_json(view) if as_json else print_parts(render_delta(view))
    return 0


def _show_importance(file: Path, *, as_json: bool) -> int:
    from medyate_planner.importance.energy import Importance
    from medyate_planner.importance.metrics import rank_layers
    from medyate_planner.reporting.text import render_ranking

    importance = Importance.load(file)
    ranking = rank_layers(importance, "raw", dict.fromkeys(importance.energy, 1))
    if as_json:
        emit_json({"kind": "importance", "source": importance.source, "layers": [asdict(entry) for entry in ranking]})
    else:
        print_parts(render_ranking(importance.source, "raw", ranking))
    return 0


def _show_run(folder: Path, *, as_json: bool) -> int:
    from medyate_planner.planning.plan import Plan
    from medyate_planner.reporting.text import render_plan, render_run
    from medyate_planner.training.run import RunFolder

    run = RunFolder(folder)
    plan = Plan.load(folder / "plan.json")
    metrics = run.metrics()
    if as_json:
        emit_json({"kind": "run", "plan": plan.to_dict(), "metrics": metrics})
    else:
        print_parts([*render_plan(plan), *render_run(metrics, plan.budget_bytes)])
    return 0
