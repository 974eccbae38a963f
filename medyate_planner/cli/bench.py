"""`medyate bench`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from medyate_planner.cli.output import emit_json, say, show
from medyate_planner.cli.progress import progress_bar

if TYPE_CHECKING:
    from medyate_planner.bench.records import Record


def bench(
    matrix: Path,
    /,
    *,
    out_dir: Annotated[Path, Parameter(name=["--out", "--out-dir"])] = Path("bench"),
    processes: int = 1,
    json: Annotated[bool, Parameter(negative="")] = False,
    debug: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Compare ways to train on your models and data, at the same measured memory.

    Every finished training is a line of results.jsonl; the same command goes on where it was stopped.

    Example: medyate bench bench.toml --out bench/ --processes 2

    Parameters
    ----------
    matrix
        TOML file: networks, tasks, budgets, contenders, families of learning rates, seeds.
    out_dir
        Folder for results.jsonl and the importance that was measured.
    processes
        Trainings at a time, one thread each.
    json
        Machine output on stdout.
    debug
        Show the traceback of an error.
    """
    del debug
    from medyate_planner.bench.jobs import STAGES, Stage, jobs_of
    from medyate_planner.bench.matrix import read_matrix
    from medyate_planner.bench.pool import complete
    from medyate_planner.bench.records import Records
    from medyate_planner.bench.summary import render_bench
    from medyate_planner.errors import InterruptedByUser

    asked = read_matrix(matrix)
    missing = {stage: len(Records(out_dir).missing(asked, stage)) for stage in STAGES}
    of = {stage: len(list(jobs_of(asked, stage))) for stage in STAGES}
    say("; ".join(f"{stage}: {of[stage] - missing[stage]} of {of[stage]} done" for stage in STAGES))
    total, done = sum(missing.values()), 0
    with progress_bar(total, "benchmark") as update:

        def on_done(_stage: Stage, _done: int, _of: int, record: Record) -> None:
            nonlocal done
            done += 1
            update(done, str(record["job"]))

        try:
            runs = complete(asked, out_dir, processes=processes, on_done=on_done)
        except KeyboardInterrupt:
            raise InterruptedByUser("interrupted: the same command goes on from here") from None
    if json:
        emit_json({"kind": "bench", "name": asked.name, "runs": [dict(record) for record in runs]})
    else:
        show(render_bench(asked, runs))
    return 0
