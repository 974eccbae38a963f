"""`medyate show`"""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from medyate_planner.cli.options import check_output
from medyate_planner.cli.output import console, emit_json, say
from medyate_planner.cli.output import show as print_parts

if TYPE_CHECKING:
    from rich.console import RenderableType

    from medyate_planner.bench.results import BenchResults
    from medyate_planner.reporting.difference import Comparable
    from medyate_planner.reporting.run_view import RunView

    Shown = Comparable | RunView | BenchResults


def show(
    file: Path | None = None,
    /,
    *,
    diff: tuple[Path, Path] | None = None,
    html: Annotated[bool, Parameter(negative="")] = False,
    output: Annotated[Path | None, Parameter(name=["-o", "--output"])] = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    force: Annotated[bool, Parameter(negative="")] = False,
    debug: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Show one of our files: report, plan or frontier.json, importance or delta.safetensors, a run or bench folder.

    Example: medyate show plan.json --html -o plan.html

    Parameters
    ----------
    file
        The file, or the folder of a run or a benchmark.
    diff
        Two plans, frontiers or reports instead of a file: what is otherwise in the second.
    html
        A self-contained page of a report, frontier, plan, run or benchmark; on stdout, or to -o.
    output
        Write a page (.html) or a figure (.png, .svg) of it here.
    json
        Machine output on stdout.
    force
        Overwrite a file that exists.
    debug
        Show the traceback of an error.
    """
    del debug
    from medyate_planner.errors import InputError

    if (file is None) == (diff is None):
        raise InputError("pass a file to show, or two to --diff A B; see `medyate show --help`")
    _check_form(html, output, as_json=json, force=force)
    if diff is not None:
        if html or output is not None:
            raise InputError("--diff has no page and no figure; leave out --html and -o, or pass --json")
        return _show_difference(*diff, as_json=json)
    assert file is not None
    if file.suffix == ".safetensors" and file.is_file():
        if html or output is not None:
            raise InputError(
                f"{file}: there are pages and figures of reports, frontiers, plans, runs and benchmarks alone"
            )
        return _show_tensors(file, as_json=json)
    found = _read(file)
    if output is not None:
        _write(found, output, force=force)
    elif html:
        _print_page(found)
    if json:
        emit_json(found.to_dict())
    elif not html and output is None:
        print_parts(_render(found))
    return 0


def _check_form(html: bool, output: Path | None, *, as_json: bool, force: bool) -> None:
    from medyate_planner.errors import InputError
    from medyate_planner.reporting.kinds import check_drawable

    if html and as_json and output is None:
        raise InputError("--html and --json both want stdout; pass -o PAGE.html")
    if output is None:
        return
    check_output(output, force=force)
    check_drawable(output)
    if html and output.suffix != ".html":
        raise InputError(f"{output}: --html writes a page, so expected a file that ends in .html; or leave out --html")


def _write(found: Shown, output: Path, *, force: bool) -> None:
    from medyate_planner.reporting.kinds import write_drawn

    write_drawn(found, output, force=force)
    say(f"wrote {output}")


def _print_page(found: Shown) -> None:
    from medyate_planner.reporting.kinds import page_of

    sys.stdout.write(page_of(found))


def _read(file: Path) -> Shown:
    """A benchmark or a run, if it is a folder; else a plan, a frontier or a report, by its key kind."""
    from medyate_planner.errors import InputError
    from medyate_planner.files import nearby
    from medyate_planner.planning.plan import Plan
    from medyate_planner.reporting.frontier_view import read_frontier
    from medyate_planner.reporting.run_view import read_run
    from medyate_planner.reporting.view import read_report

    if file.is_dir():
        from medyate_planner.bench.results import is_results, read_results

        return read_results(file) if is_results(file) else read_run(file)
    if not file.exists():
        raise InputError(f"{file}: no such file{nearby(file)}")
    data = _read_json(file)
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind == "plan":
        return Plan.from_dict(data, where=str(file))
    if kind == "report":
        return read_report(data, where=str(file))
    if kind == "frontier":
        return read_frontier(data, where=str(file))
    raise InputError(
        f"{file}: expected a report, a plan, a frontier, an importance file, a run or bench folder, got kind {kind!r}"
    )


def _render(found: Shown) -> Iterable[RenderableType]:
    from medyate_planner.bench.results import BenchResults
    from medyate_planner.bench.summary import render_bench
    from medyate_planner.planning.plan import Plan
    from medyate_planner.reporting.frontier_text import render_frontier
    from medyate_planner.reporting.frontier_view import FrontierReport
    from medyate_planner.reporting.report_text import render_report
    from medyate_planner.reporting.run_view import RunView
    from medyate_planner.reporting.text import render_plan, render_run

    if isinstance(found, BenchResults):
        yield from render_bench(found.matrix, found.records.runs(found.matrix))
    elif isinstance(found, RunView):
        yield from (*render_plan(found.plan), *render_run(found.metrics, found.plan.budget_bytes))
    elif isinstance(found, Plan):
        yield from render_plan(found)
    elif isinstance(found, FrontierReport):
        yield from render_frontier(found)
    else:
        yield from render_report(found, width=console().width)


def _show_difference(a: Path, b: Path, *, as_json: bool) -> int:
    from medyate_planner.bench.results import BenchResults
    from medyate_planner.errors import InputError
    from medyate_planner.reporting.difference import difference_of
    from medyate_planner.reporting.difference_text import render_difference
    from medyate_planner.reporting.run_view import RunView

    for file in (a, b):
        if file.is_dir() or file.suffix == ".safetensors":
            raise InputError(f"{file}: --diff compares plans, frontiers or reports")
    first, second = _read(a), _read(b)
    assert not isinstance(first, (RunView, BenchResults))
    assert not isinstance(second, (RunView, BenchResults))
    found = difference_of(first, second)
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
