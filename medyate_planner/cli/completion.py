"""`medyate --install-completion`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

from cyclopts import Parameter

from medyate_planner.cli.output import say

SHELLS = ("bash", "zsh", "fish")


def install_completion(
    *, shell: str | None = None, output: Annotated[Path | None, Parameter(name=["-o", "--output"])] = None
) -> int:
    """Let the Tab key complete commands and options, in bash, zsh and fish.

    Writes the completion where the shell looks for it, and for bash and zsh a line into ~/.bashrc or ~/.zshrc.

    Parameters
    ----------
    shell
        bash, zsh or fish; by default the one this runs in.
    output
        Write the completion here instead, and no line anywhere else.
    """
    from cyclopts.completion.detect import ShellDetectionError, detect_shell

    from medyate_planner.cli import build_app
    from medyate_planner.errors import InputError, unknown_name
    from medyate_planner.files import write_text

    try:
        chosen = shell or detect_shell()
    except ShellDetectionError as error:
        raise InputError(f"--shell: which shell this is can not be told; pass one of {', '.join(SHELLS)}") from error
    if chosen not in SHELLS:
        raise unknown_name("--shell", chosen, SHELLS)
    app, known = build_app(), cast("Literal['bash', 'zsh', 'fish']", chosen)
    if output is not None:
        place = write_text(output, app.generate_completion(shell=known))
    else:
        try:
            place = app.install_completion(shell=known)
        except OSError as error:
            raise InputError(f"the completion can not be written: {error}; pass -o FILE") from error
    say(f"wrote {place}; it works in the next {chosen} that you start")
    return 0
