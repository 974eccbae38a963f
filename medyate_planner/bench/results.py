"""A benchmark's folder as one thing: what was asked, what came out, and the report on it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ValidationError

from medyate_planner.bench.matrix import Matrix
from medyate_planner.bench.records import Records
from medyate_planner.bench.report import document_of
from medyate_planner.errors import InputError
from medyate_planner.files import read_text, write_text
from medyate_planner.reporting.document import Document

SCHEMA_VERSION = 1
_FILE = "matrix.json"


@dataclass(frozen=True, kw_only=True)
class BenchResults:
    """Results so far; `command` goes on."""

    kind: ClassVar[str] = "bench"

    matrix: Matrix
    records: Records
    command: str

    def document(self) -> Document:
        """The report."""
        return document_of(self.matrix, self.records, command=self.command)

    def to_dict(self) -> dict[str, Any]:
        """Every training that is done."""
        runs = [dict(record) for record in self.records.runs(self.matrix)]
        return {"kind": self.kind, "schema_version": SCHEMA_VERSION, "name": self.matrix.name, "runs": runs}

    def save(self) -> Path:
        """Note beside the results what was asked, so that they can be shown later."""
        asked = {
            "kind": self.kind,
            "schema_version": SCHEMA_VERSION,
            "command": self.command,
            "matrix": self.matrix.model_dump(mode="json", exclude_defaults=True),
        }
        return write_text(self.records.folder / _FILE, json.dumps(asked, indent=2) + "\n", force=True)


def is_results(folder: Path) -> bool:
    """Whether `medyate bench` wrote into this folder."""
    return (folder / _FILE).is_file()


def read_results(folder: Path) -> BenchResults:
    """What `save` noted, and the results beside it.

    Raises:
        InputError: a file that is damaged, or of another version.
    """
    file = folder / _FILE
    try:
        data = json.loads(read_text(file, what="matrix"))
        if data["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"{file}: schema version {data['schema_version']!r}, expected {SCHEMA_VERSION}; run it again"
            )
        matrix = Matrix.model_validate(data["matrix"])
        command = str(data["command"])
    except (ValueError, KeyError, TypeError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise InputError(f"{file}: not what `medyate bench` writes ({first}); run it again") from error
    return BenchResults(matrix=matrix, records=Records(folder), command=command)
