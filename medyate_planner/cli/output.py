"""Where text goes: results to stdout, everything else to stderr, errors as one line or one JSON object."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from medyate_planner.errors import MedyateError


def console(*, stderr: bool = False) -> Console:
    """A rich console that honours NO_COLOR and COLUMNS and, where there is no terminal, does not fold tables."""
    from rich.console import Console

    made = Console(file=sys.stderr if stderr else None, highlight=False, soft_wrap=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = 180
    return made


def show(parts: Iterable[RenderableType]) -> None:
    """Print rendered views to stdout, a blank line between them."""
    out = console()
    for index, part in enumerate(parts):
        if index:
            out.print()
        out.print(part)


def say(text: str) -> None:
    """A message for the person, on stderr, without the control characters that somebody's names may hold."""
    print("".join(c if c.isprintable() else "?" for c in text), file=sys.stderr, flush=True)


def emit_json(data: Any) -> None:
    """Machine output on stdout."""
    json.dump(data, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def fail(error: MedyateError, *, as_json: bool) -> int:
    """Report an error: one line on stderr or, with --json, an object on stdout. Returns the exit code."""
    if as_json:
        emit_json(error.to_dict())
    else:
        say(f"medyate: {' '.join(error.message.split())}")
    return error.exit_code
