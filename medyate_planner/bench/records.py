"""Results: one line of JSON for each finished job, in a file that a kill at any moment leaves readable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medyate_planner.bench.jobs import Job, digest_of, jobs_of
from medyate_planner.bench.matrix import Matrix
from medyate_planner.errors import InputError

Record = Mapping[str, Any]


class Records:
    """The results in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "results.jsonl"
        self._known: dict[tuple[str, str], Record] | None = None

    def add(self, record: Record) -> None:
        """Append a result; it is on the disk when this returns.

        Raises:
            InputError: the file can not be written.
        """
        self._read()
        line = json.dumps(record, sort_keys=True, allow_nan=False) + "\n"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.file.open("a+b") as file:
                file.seek(0, os.SEEK_END)
                if file.tell():  # a line that a kill cut off is ended, so that this one stands alone
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read(1) == b"\n" else "\n" + line
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"{self.file}: can not be written: {error.strerror or error}") from error
        assert self._known is not None
        self._known[record["job"], record["digest"]] = record

    def of(self, matrix: Matrix, job: Job) -> Record | None:
        """The result of a job as this matrix asks for it."""
        return self._read().get((job.name, digest_of(matrix, job)))

    def missing(self, matrix: Matrix, stage: Any) -> list[Job]:
        """The jobs of a stage that have no result."""
        return [job for job in jobs_of(matrix, stage) if self.of(matrix, job) is None]

    def runs(self, matrix: Matrix) -> list[Record]:
        """The results of all finished runs, in the order of the matrix."""
        found = (self.of(matrix, job) for job in jobs_of(matrix, "run"))
        return [record for record in found if record is not None]

    def _read(self) -> dict[tuple[str, str], Record]:
        if self._known is None:
            self._known = {}
            for line in self.file.read_bytes().splitlines() if self.file.exists() else ():
                try:
                    record = json.loads(line)
                    self._known[record["job"], record["digest"]] = record
                except (ValueError, KeyError, TypeError):  # a line that a kill cut off: that job is done again
                    continue
        return self._known


def best_rate(matrix: Matrix, records: Records, job: Job) -> float:
    """The learning rate of a run's family on its network and task: the best on the validation split, ties to the
    smaller.

    Raises:
        InputError: it has not been tuned yet.
    """
    family = matrix.families[matrix.named("contenders", str(job.contender)).family]
    if len(family.rates) == 1:
        return family.rates[0]
    scores: dict[float, float] = {}
    for tried in jobs_of(matrix, "tune"):
        if (tried.network, tried.task, tried.contender) == (job.network, job.task, family.chosen_by):
            record = records.of(matrix, tried)
            if record is None:
                raise InputError(f"{tried.name}: not tuned yet")
            scores[float(record["rate"])] = float(record["accuracy"] or 0.0)
    return max(sorted(scores), key=lambda rate: scores[rate])
