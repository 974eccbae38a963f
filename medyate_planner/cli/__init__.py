"""The command line: one file per command, `main` returns the exit code."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts import App

COMMANDS = ("report", "rank", "plan", "show", "verify", "train", "export", "bench", "demo", "schema")


def entry() -> int:
    """What the console script calls: `main`, without Python's cyclic collections where a run is short.

    They cost a fifth of a report's time (torch makes a million objects at import), and free nothing that matters in
    the seconds such a run takes.
    """
    brief = bool(sys.argv[1:]) and sys.argv[1] not in ("rank", "train", "bench", "demo")
    if brief:
        gc.disable()
    code = main()
    if brief:
        gc.freeze()  # nor at exit
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run `medyate` with these arguments and return the exit code of DESIGN section 10."""
    from cyclopts import CycloptsError

    from medyate_planner.cli.output import fail
    from medyate_planner.errors import InputError, InterruptedByUser, MedyateError

    tokens = list(sys.argv[1:] if argv is None else argv)
    as_json, debug = "--json" in tokens, "--debug" in tokens
    try:
        result = build_app()(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        text = " ".join(str(error).split()).rstrip(".") or "wrong usage"
        return fail(InputError(f"{text}; see `medyate --help`"), as_json=as_json)
    except MedyateError as error:
        if debug:
            raise
        return fail(error, as_json=as_json)
    except KeyboardInterrupt:
        return fail(InterruptedByUser("interrupted"), as_json=as_json)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def build_app() -> App:
    """The command line as a cyclopts app; a command imports what is heavy when it runs."""
    from importlib import import_module

    from cyclopts import App

    from medyate_planner import __version__

    app = App(
        name="medyate",
        help="Fine-tune any torch model inside a memory budget: report → rank → plan → verify → train.\n\n"
        "Example: medyate plan timm:mobilenetv2_035 --budget 8MB",
        version=__version__,
        suppress_keyboard_interrupt=False,
    )
    for name in COMMANDS:
        app.command(getattr(import_module(f"medyate_planner.cli.{name}"), name), name=name)
    return app
