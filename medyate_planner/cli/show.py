"""`medyate show`"""

from __future__ import annotations

import json as json_format
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medyate_planner.cli.output import console, emit_json
from medyate_planner.cli.output import show as print_parts


def show(file: Path, /, *, json: bool = False, debug: bool = False) -> int:
    """Show one of our files: report.json, plan.json, importance.safetensors, or a run folder.

    Example: medyate show plan.json

    Parameters
    ----------
    file
        The file, or a run folder.
    json
        Machine output on stdout.
    debug
        Show the traceback of an error.
    """
    del debug
    from medyate_planner.errors import InputError

    if file.is_dir():
        return _show_run(file, as_json=json)
    if not file.exists():
        raise InputError(f"{file}: no such file")
    if file.suffix == ".safetensors":
        return _show_importance(file, as_json=json)
    data = _read_json(file)
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind == "plan":
        from medyate_planner.planning.plan import Plan
        from medyate_planner.reporting.text import render_plan

        plan = Plan.from_dict(data, where=str(file))
        emit_json(plan.to_dict()) if json else print_parts(render_plan(plan))
        return 0
    if kind == "report":
        from medyate_planner.reporting.report_text import render_report
        from medyate_planner.reporting.view import read_report

        report = read_report(data, where=str(file))
        emit_json(report.to_dict()) if json else print_parts(render_report(report, width=console().width))
        return 0
    raise InputError(f"{file}: expected a report, a plan, an importance file or a run folder, got kind {kind!r}")


def _read_json(file: Path) -> Any:
    from medyate_planner.errors import InputError
    from medyate_planner.files import read_text

    try:
        return json_format.loads(read_text(file, what="file"))
    except RecursionError as error:
        raise InputError(f"{file}: nested too deeply to be one of our files") from error
    except json_format.JSONDecodeError as error:
        raise InputError(f"{file}: not complete JSON (line {error.lineno}: {error.msg}); make it again") from error


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
