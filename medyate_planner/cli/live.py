"""The live view of a training: loss, accuracy, measured memory against the budget, the channels trained now."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from math import ceil, isfinite
from statistics import fmean
from typing import TYPE_CHECKING

from medyate_planner.cli.output import console
from medyate_planner.cli.progress import bar_columns
from medyate_planner.summary import printable, the_head

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from medyate_planner.planning.plan import Plan
    from medyate_planner.training.measure import StepMeasurement
    from medyate_planner.training.progress import Epoch, Interval

BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII = " .:-=+*#@"
RECENT = 50  # steps over which the loss is averaged
APART = 10  # steps between two points of its curve
WIDE = 32  # most characters of a curve or of a layer's channels
ABOVE = 8  # lines of the view that are not layers, and room for the prompt


class LiveTraining:
    """What a training has told so far, as rich shows it. `steps` of an epoch; `epochs` of the whole run."""

    def __init__(self, plan: Plan, epochs: int, steps: int, bar: RenderableType) -> None:
        from medyate_planner.training.guard import Guard

        self.plan, self.epochs, self.steps, self.bar = plan, epochs, steps, bar
        self.losses: list[float] = []  # means of the recent steps, every `APART` steps
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.accuracies: list[float] = []
        self.used: list[int] = []  # bytes of measured steps
        self.draw: Interval | None = None
        self.done = 0
        self._used_bytes: Callable[[StepMeasurement], int] = Guard.of(plan).used_bytes

    def on_step(self, epoch: int, step: int, loss: float) -> None:
        """A step is done."""
        self.done = epoch * self.steps + step + 1
        self.recent.append(loss)
        if self.done % APART == 0 or not self.losses:
            self.losses.append(self.loss)

    def on_draw(self, interval: Interval) -> None:
        """New channels are trained from now on."""
        self.draw = interval

    def on_measured(self, step: StepMeasurement) -> None:
        """A step was measured."""
        self.used.append(self._used_bytes(step))

    def on_epoch(self, epoch: Epoch) -> None:
        """An epoch was evaluated."""
        if epoch.metrics.test_accuracy is not None:
            self.accuracies.append(epoch.metrics.test_accuracy)

    @property
    def loss(self) -> float:
        """Mean loss of the recent steps."""
        return fmean(self.recent)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table

        marks = ASCII if options.ascii_only else BLOCKS
        rows = max(options.max_height - ABOVE, 1)
        facts = Table.grid(padding=(0, 2))
        facts.add_column(style="bold")
        facts.add_column()
        facts.add_column(no_wrap=True, overflow="ellipsis")
        for name, picture, text in (self._loss(marks), self._accuracy(marks), self._memory()):
            facts.add_row(name, picture, text)
        yield self.bar
        yield facts
        if self.draw is not None:
            yield from self._layers(self.draw, marks, rows)

    def _loss(self, marks: str) -> tuple[str, str, str]:
        if not self.recent:
            return "loss", "", "after the first step"
        return "loss", curve(self.losses, marks), f"{self.loss:.4f}, mean of the last {len(self.recent)} steps"

    def _accuracy(self, marks: str) -> tuple[str, str, str]:
        if not self.accuracies:
            return "accuracy", "", "after each epoch, on test data"
        best = max(self.accuracies)
        text = f"{self.accuracies[-1]:.4f} on test data" + (f", best {best:.4f}" if len(self.accuracies) > 1 else "")
        return "accuracy", curve(self.accuracies, marks), text

    def _memory(self) -> tuple[str, RenderableType, str]:
        from rich.progress_bar import ProgressBar

        budget = self.plan.budget_bytes
        if not self.used:
            return "memory", "", f"measured at the second step; the budget is {budget:,} B"
        used, most = self.used[-1], max(self.used)
        style = "green" if most <= budget else "red"
        bar = ProgressBar(
            total=budget, completed=min(used, budget), width=WIDE, complete_style=style, finished_style=style
        )
        word = "" if most <= budget else ", above it"
        return "memory", bar, f"{used:,} B measured, of {budget:,} B ({self.plan.scope}){word}"

    def _layers(self, draw: Interval, marks: str, rows: int) -> Iterator[RenderableType]:
        from rich.table import Table
        from rich.text import Text

        channels = {layer.name: layer.channels for layer in self.plan.layers}
        in_full = [layer.name for layer in self.plan.layers if layer.head]
        drawn = {name: chosen for name, chosen in draw.layers.items() if chosen and name in channels}
        largest = sorted(drawn, key=lambda name: -len(drawn[name]))[:rows]
        told = [f"{sum(map(len, drawn.values())):,} channels of {len(drawn):,} layers"] if drawn else []
        told += [f"{len(self.plan.biases):,} biases"] if self.plan.biases else []
        told += [printable(f"{the_head(in_full)} in full")] if in_full else []
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_column(justify="right", no_wrap=True)
        table.add_column(no_wrap=True)
        for name in (name for name in drawn if name in largest):
            chosen, of = drawn[name], channels[name]
            table.add_row(Text(f"  {printable(name)}"), f"{len(chosen):,} of {of:,}", strip(chosen, of, marks))
        yield Text.assemble(("trained", "bold"), f"   since step {draw.step + 1:,}: {', '.join(told)}")
        yield table
        if len(drawn) > len(largest):
            yield f"  and {len(drawn) - len(largest):,} layers more"


def _grouped(values: Sequence[float], most: int) -> list[float]:
    """The values, or means of neighbours where there are more than so many."""
    width = ceil(len(values) / most) or 1
    return [fmean(values[start : start + width]) for start in range(0, len(values), width)]


def curve(values: Sequence[float], marks: str) -> str:
    """Values from first to last, at most `WIDE` of them (then means of neighbours), as characters of rising height."""
    shown = [value for value in _grouped(values, WIDE) if isfinite(value)]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    heights = len(marks) - 2  # the lowest still shows
    return "".join(marks[1 + round((value - low) / ((high - low) or 1.0) * heights)] for value in shown)


def strip(chosen: Sequence[int], channels: int, marks: str) -> str:
    """Which channels of a layer are trained: each character stands for neighbours, as high as many of them are."""
    trained = set(chosen)
    width = min(channels, WIDE)
    edges = [channels * place // width for place in range(width + 1)]
    shares = [sum(channel in trained for channel in range(*edge)) / (edge[1] - edge[0]) for edge in pairwise(edges)]
    return "".join(marks[ceil(share * (len(marks) - 1))] for share in shares)


@contextmanager
def live_training(plan: Plan, epochs: int, steps: int, what: str = "training") -> Iterator[LiveTraining]:
    """The view on stderr while the block runs, in a terminal; elsewhere nothing is shown."""
    from rich.live import Live
    from rich.progress import Progress

    out = console(stderr=True)
    progress = Progress(*bar_columns(), console=out)
    task = progress.add_task(what, total=epochs * steps, note="")
    view = LiveTraining(plan, epochs, steps, progress)
    if not out.is_terminal:
        yield view
        return

    def renew() -> RenderableType:
        progress.update(task, completed=view.done, note=f"epoch {min(view.done // steps + 1, epochs)} of {epochs}")
        return view

    with Live(get_renderable=renew, console=out, transient=True, refresh_per_second=4):
        yield view
