"""The command line: one file per command, `main` returns the exit code."""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts import App

    from medyate_planner.errors import InputError

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

    from medyate_planner.cli.help import HELP_ALL
    from medyate_planner.cli.output import fail
    from medyate_planner.cli.usage import explain
    from medyate_planner.errors import InterruptedByUser, MedyateError

    tokens = list(sys.argv[1:] if argv is None else argv)
    as_json, debug = "--json" in tokens, "--debug" in tokens
    app = build_app(describe_all=HELP_ALL in tokens)
    tokens = ["--help" if token == HELP_ALL else token for token in tokens]
    try:
        result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError as error:
        return fail(explain(error, tokens, COMMANDS), as_json=as_json)
    except MedyateError as error:
        if debug:
            raise
        return fail(error, as_json=as_json)
    except KeyboardInterrupt:
        return fail(InterruptedByUser("interrupted"), as_json=as_json)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return fail(_stdout_is_full(), as_json=False)
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def _stdout_is_full() -> InputError:
    """The error where what was printed could not be written; what is left of it is given up."""
    from medyate_planner.errors import InputError

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return InputError(f"the output can not be written: {os.strerror(errno.ENOSPC)}; make room, or send it elsewhere")


def build_app(*, describe_all: bool = False) -> App:
    """The command line as a cyclopts app; a command imports what is heavy when it runs.

    Help describes the everyday options, or with `describe_all` every one.
    """
    from importlib import import_module

    from cyclopts import App

    from medyate_planner import __version__
    from medyate_planner.cli.completion import install_completion
    from medyate_planner.cli.help import ShortHelp

    app = App(
        name="medyate",
        help="Fine-tune any torch model inside a memory budget: report → rank → plan → verify → train.\n\n"
        "`medyate COMMAND --help` describes a command, `--help-all` every one of its options.\n\n"
        "Example: medyate plan mcunet-5fps --num-classes 10 --budget 512kB",
        version=__version__,
        suppress_keyboard_interrupt=False,
    )
    for order, name in enumerate(COMMANDS):
        formatter = None if describe_all else ShortHelp(f"medyate {name}")
        command = getattr(import_module(f"medyate_planner.cli.{name}"), name)
        app.command(command, name=name, help_formatter=formatter, sort_key=order)
    app.command(install_completion, name="--install-completion")
    return app
