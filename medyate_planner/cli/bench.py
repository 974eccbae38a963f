"""`medyate bench`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from medyate_planner.cli.output import emit_json, say, show
from medyate_planner.cli.progress import progress_bar

if TYPE_CHECKING:
    from medyate_planner.bench.jobs import Stage
    from medyate_planner.bench.matrix import Matrix
    from medyate_planner.bench.records import Record


def bench(
    matrix: Path,
    /,
    *,
    out_dir: Annotated[Path, Parameter(name=["--out", "--out-dir"])] = Path("bench"),
    processes: int = 1,
    report_only: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
    debug: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Compare ways to train on your models and data, at the same measured memory.

    Every finished training is a line of results.jsonl; the same command goes on where it was stopped. At the end,
    report.html and report.md say what came out.

    Example: medyate bench bench.toml --out bench --processes 2

    Parameters
    ----------
    matrix
        TOML file: networks, tasks, budgets, contenders, families of learning rates, seeds.
    out_dir
        Folder for results.jsonl, the importance that was measured, and the report.
    processes
        Trainings at a time, one thread each.
    report_only
        Start nothing: write the report of what is done.
    json
        Machine output on stdout.
    debug
        Show the traceback of an error.
    """
    del debug
    from importlib.util import find_spec

    from medyate_planner.bench.jobs import STAGES, jobs_of
    from medyate_planner.bench.matrix import read_matrix
    from medyate_planner.bench.records import Records
    from medyate_planner.bench.results import BenchResults
    from medyate_planner.bench.summary import render_bench
    from medyate_planner.reporting.document import write_document

    asked = read_matrix(matrix)
    records = Records(out_dir)
    missing = {stage: len(records.missing(asked, stage)) for stage in STAGES}
    of = {stage: len(list(jobs_of(asked, stage))) for stage in STAGES}
    say("; ".join(f"{stage}: {of[stage] - missing[stage]} of {of[stage]} done" for stage in STAGES))
    if not report_only:
        _complete(asked, out_dir, processes, sum(missing.values()))
        records = Records(out_dir)
    results = BenchResults(matrix=asked, records=records, command=f"medyate bench {matrix} --out {out_dir}")
    results.save()
    written = write_document(results.document(), out_dir, figures=find_spec("matplotlib") is not None)
    say(f"wrote {', '.join(map(str, written))}")
    if json:
        emit_json(results.to_dict())
    else:
        show(render_bench(asked, records.runs(asked)))
    return 0


def _complete(asked: Matrix, out_dir: Path, processes: int, total: int) -> None:
    """Do what is missing, with progress."""
    from medyate_planner.bench.pool import complete
    from medyate_planner.errors import InterruptedByUser

    done = 0
    with progress_bar(total, "benchmark", log_seconds=60) as update:

        def on_done(_stage: Stage, _done: int, _of: int, record: Record) -> None:
            nonlocal done
            done += 1
            update(done, str(record["job"]))

        try:
            complete(asked, out_dir, processes=processes, on_done=on_done)
        except KeyboardInterrupt:
            raise InterruptedByUser("interrupted: the same command goes on from here") from None
