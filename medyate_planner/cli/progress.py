"""Progress on stderr, with the time left; silent where there is no terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from medyate_planner.cli.output import console

if TYPE_CHECKING:
    from collections.abc import Callable


@contextmanager
def progress_bar(total: int, what: str) -> Iterator[Callable[[int, str], None]]:
    """A bar of `total` steps; the yielded function takes the steps done and a short text."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    out = console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task(what, total=total, note="")
        yield lambda done, note: bar.update(task, completed=done, note=note)


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """A spinner beside the name of the stage that is being worked on; the yielded function takes the next name."""
    out = console(stderr=True)
    if not out.is_terminal:
        yield lambda _stage: None
        return
    with out.status("") as status:
        yield lambda stage: status.update(stage)
