"""Progress on stderr, with the time left; where there is no terminal, silent, or now and then a line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from medyate_planner.cli.output import console, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import ProgressColumn


class Advance(Protocol):
    """Steps done, a short text, and how many steps there are if that has become clear only now."""

    def __call__(self, done: int, note: str, /, total: int | None = None) -> None: ...


def bar_columns() -> tuple[ProgressColumn, ...]:
    """What, a bar, how many of how many, the time left, and a note."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    return (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )


@contextmanager
def progress_bar(total: int, what: str, *, log_seconds: float | None = None) -> Iterator[Advance]:
    """A bar of `total` steps; the yielded function moves it on. Without a terminal a line every `log_seconds`."""
    from rich.progress import Progress

    out = console(stderr=True)
    with Progress(*bar_columns(), console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task(what, total=total, note="")
        log = None if out.is_terminal or log_seconds is None else _Log(total, what, log_seconds)

        def advance(done: int, note: str, /, total: int | None = None) -> None:
            bar.update(task, completed=done, note=note, total=total)
            if log is not None:
                log.advance(done, note, total)

        yield advance


class _Log:
    """Lines of progress, for a file: at most one in so many seconds, and the last."""

    def __init__(self, total: int, what: str, seconds: float) -> None:
        self.total, self.what, self.seconds = total, what, seconds
        self.began = self.said = time.monotonic()

    def advance(self, done: int, note: str, total: int | None) -> None:
        self.total = total or self.total
        now = time.monotonic()
        if now - self.said >= self.seconds or done == self.total:
            self.said = now
            left = (self.total - done) * (now - self.began) / max(done, 1)
            say(f"{self.what}: {done:,} of {self.total:,}, about {left / 60:.0f} min left; {note}")


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """A spinner beside the name of the stage that is being worked on, and for how long; the yielded function takes the
    next name."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    out = console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as shown:
        task = shown.add_task("", total=None)
        yield lambda stage: shown.reset(task, description=stage)
