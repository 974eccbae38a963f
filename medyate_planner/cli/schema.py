"""`medyate schema`"""

from __future__ import annotations

from typing import Any

from medyate_planner.cli.output import emit_json


def schema(kind: str, /, *, debug: bool = False) -> int:
    """Print the JSON Schema of one of our files: what each key means, its unit, what is allowed.

    Example: medyate schema plan

    Parameters
    ----------
    kind
        report, plan, frontier, matrix (the TOML that `medyate bench` reads), bench (what `medyate bench --json` prints)
        or results (a line of results.jsonl).
    debug
        Show the traceback of an error.
    """
    del debug
    from pydantic import TypeAdapter

    from medyate_planner.bench.matrix import Matrix
    from medyate_planner.bench.result import BenchOutput, ResultLine
    from medyate_planner.errors import InputError, did_you_mean
    from medyate_planner.planning.plan import Plan
    from medyate_planner.reporting.frontier_view import FrontierReport
    from medyate_planner.reporting.view import MemoryReport

    known: dict[str, Any] = {
        "report": MemoryReport, "plan": Plan, "frontier": FrontierReport,
        "matrix": Matrix, "bench": BenchOutput, "results": ResultLine,
    }  # fmt: skip
    if kind not in known:
        *names, last = known
        raise InputError(
            f"schema {kind!r} is unknown; {did_you_mean(kind, known, count=1)}choose {', '.join(names)} or {last}"
        )
    described = TypeAdapter(known[kind]).json_schema()
    emit_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **described})
    return 0
