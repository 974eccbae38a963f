"""`medyate schema`"""

from __future__ import annotations

from medyate_planner.cli.output import emit_json


def schema(kind: str, /, *, debug: bool = False) -> int:
    """Print the JSON Schema of one of our files.

    Example: medyate schema report

    Parameters
    ----------
    kind
        report, plan or frontier.
    debug
        Show the traceback of an error.
    """
    del debug
    from pydantic import BaseModel

    from medyate_planner.errors import InputError
    from medyate_planner.planning.plan import Plan
    from medyate_planner.reporting.frontier_view import FrontierReport
    from medyate_planner.reporting.view import MemoryReport

    known: dict[str, type[BaseModel]] = {"report": MemoryReport, "plan": Plan, "frontier": FrontierReport}
    if kind not in known:
        raise InputError(f"schema {kind!r} is unknown; choose report, plan or frontier")
    described = known[kind].model_json_schema()
    emit_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **described})
    return 0
