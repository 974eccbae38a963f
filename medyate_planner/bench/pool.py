"""All jobs of a matrix that have no result yet, in several processes of one thread each."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from medyate_planner.bench.jobs import STAGES, Job, Stage, jobs_of
from medyate_planner.bench.matrix import Matrix
from medyate_planner.bench.records import Record, Records, best_rate
from medyate_planner.bench.work import importance_file, perform
from medyate_planner.errors import InputError

OnDone = Callable[[Stage, int, int, Record], None]  # stage, jobs done, jobs there were to do, the result


def complete(
    matrix: Matrix,
    folder: Path,
    *,
    processes: int = 1,
    on_done: OnDone = lambda _stage, _done, _of, _record: None,
) -> list[Record]:
    """Do what is missing, stage after stage; each result is on the disk at once, so that a kill loses the jobs that
    were under way and no more. Returns the results of all runs.

    Raises:
        InputError: the matrix asks for what can not be done, a package is missing, or a process was killed.
    """
    if processes < 1:
        raise InputError(f"--processes: expected 1 or more, got {processes}")
    records = Records(folder)
    _require_extras(matrix, records)
    for stage in STAGES:
        todo = _todo(matrix, records, stage)
        for done, record in enumerate(_results(matrix, records, todo, processes), start=1):
            records.add(record)
            on_done(stage, done, len(todo), record)
    return records.runs(matrix)


def _require_extras(matrix: Matrix, records: Records) -> None:
    """What is needed hours later is asked for now."""
    jobs = [job for stage in ("tune", "run") for job in records.missing(matrix, stage)]
    kinds = {matrix.named("contenders", str(job.contender)).kind for job in jobs}
    needed = {"scipy": "the report's tests need", **({"peft": "LoRA needs"} if any("lora" in k for k in kinds) else {})}
    for module, why in needed.items():
        if importlib.util.find_spec(module) is None:
            raise InputError(f"{why} {module}; install it with: pip install 'medyate-planner[bench]'")


def _todo(matrix: Matrix, records: Records, stage: Stage) -> list[Job]:
    """Jobs without a result; importance of which the file is gone is measured again where it is needed."""
    missing = records.missing(matrix, stage)
    if stage != "rank":
        return missing
    later = [job for later in ("tune", "run") for job in records.missing(matrix, later)]
    needed = {(job.network, job.task, job.seed) for job in later}
    return [
        job
        for job in jobs_of(matrix, "rank")
        if (job.network, job.task, job.seed) in needed
        and (job in missing or not importance_file(records.folder, job).exists())
    ]


def _results(matrix: Matrix, records: Records, todo: list[Job], processes: int) -> Iterator[Record]:
    def arguments(job: Job) -> tuple[Any, ...]:
        rate = best_rate(matrix, records, job) if job.stage == "run" else job.rate
        return matrix, job, records.folder, rate

    if processes == 1 or len(todo) < 2:
        for job in todo:
            yield perform(*arguments(job))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin) as pool:
        waiting: set[Future[Any]] = set()
        queue = iter(todo)
        try:
            for job in queue:
                waiting.add(pool.submit(perform, *arguments(job)))
                if len(waiting) >= 2 * processes:
                    waiting = yield from _arrived(waiting)
            while waiting:
                waiting = yield from _arrived(waiting)
        except BrokenProcessPool as error:
            raise InputError(
                "a process of the benchmark was killed (out of memory?); the same command goes on from there"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _arrived(waiting: set[Future[Any]]) -> Any:
    done, rest = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        yield future.result()
    return rest


def _begin() -> None:
    """One thread for the work; and no worker outlives a parent that was killed."""
    os.environ["OMP_NUM_THREADS"] = "1"
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
