"""Progress on stderr, with the time left; silent where there is no terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from medyate_planner.cli.output import console

if TYPE_CHECKING:
    from collections.abc import Callable


class Advance(Protocol):
    """Steps done, a short text, and how many steps there are if that has become clear only now."""

    def __call__(self, done: int, note: str, /, total: int | None = None) -> None: ...


@contextmanager
def progress_bar(total: int, what: str) -> Iterator[Advance]:
    """A bar of `total` steps; the yielded function moves it on."""
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
        yield lambda done, note, total=None: bar.update(task, completed=done, note=note, total=total)


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """A spinner beside the name of the stage that is being worked on; the yielded function takes the next name."""
    out = console(stderr=True)
    if not out.is_terminal:
        yield lambda _stage: None
        return
    with out.status("") as status:
        yield lambda stage: status.update(stage)
