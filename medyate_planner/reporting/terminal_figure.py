"""The memory of a step as a figure in a terminal: one panel for each way to run it, all at one scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from medyate_planner.memory.moments import Category
from medyate_planner.reporting.tables import safe
from medyate_planner.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

    from medyate_planner.reporting.view import ReportedTimeline

ROWS = 9
WIDEST, NARROWEST, GAP = 40, 12, 2


@dataclass(frozen=True, slots=True)
class Layer:
    """Categories that are drawn as one, from the bottom up."""

    name: str
    mark: str
    plain: str
    style: str
    categories: frozenset[Category]


LAYERS = (
    Layer("weights, inputs", "░", ".", "bright_black", frozenset({Category.WEIGHTS, Category.INPUTS})),
    Layer(
        "kept for backward",
        "█",
        "#",
        "blue",
        frozenset({Category.KEPT, Category.KEPT_SELECTED, Category.KEPT_PASSTHROUGH, Category.KEPT_LOSS}),
    ),
    Layer(
        "weight gradients, state",
        "▓",
        "%",
        "yellow",
        frozenset(
            {Category.WEIGHT_GRADIENTS, Category.OPTIMIZER_STATE, Category.WORKING_COPIES, Category.INDICES},
        ),
    ),
    Layer(
        "activations, their gradients",
        "▒",
        "+",
        "cyan",
        frozenset({Category.ACTIVATIONS, Category.ACTIVATION_GRADIENTS}),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One way to run a step, and its timeline."""

    title: str
    timeline: ReportedTimeline


class StepFigure:
    """Live bytes over a step, stacked by what they are for; as wide as the terminal allows, without colour too."""

    def __init__(self, panels: Sequence[Panel]) -> None:
        self.panels = tuple(panels)
        self.peak_bytes = max(panel.timeline.peak_bytes for panel in self.panels)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        axis = len(format_bytes(self.peak_bytes)) + 1
        fitting = (options.max_width - axis) // len(self.panels) - GAP
        width = min(fitting, WIDEST)
        if width < NARROWEST:
            return
        drawn = [columns_of(panel.timeline, width) for panel in self.panels]
        yield Text("Live memory over one step", style="bold cyan")
        for row in range(ROWS):
            label = format_bytes(self.peak_bytes) if row == 0 else "0 B" if row == ROWS - 1 else ""
            parts = [Text(label.rjust(axis))]
            parts += [Text("  ").append_text(self._cells(columns, row, options.ascii_only)) for columns in drawn]
            yield Text.assemble(*parts)
        for texts in (self._phases(width), [safe(panel.title) for panel in self.panels]):
            yield Text(" " * axis + "".join("  " + text[:width].ljust(width) for text in texts))
        yield legend(options.ascii_only)

    def _cells(self, columns: Sequence[Sequence[int]], row: int, ascii_only: bool) -> Text:
        """One row of a panel: each cell is what stands at its middle."""
        from rich.text import Text

        at = self.peak_bytes * (ROWS - row - 0.5) / ROWS
        made = Text()
        for layer, cells in groupby(layer_at(column, at) for column in columns):
            mark = " " if layer is None else layer.plain if ascii_only else layer.mark
            made.append(mark * len(list(cells)), style=layer.style if layer is not None else "")
        return made

    def _phases(self, width: int) -> Iterator[str]:
        """What happens from left to right, in each panel."""
        for panel in self.panels:
            runs = [(phase, len(list(run))) for phase, run in groupby(panel.timeline.phase)]
            total = len(panel.timeline.phase)
            text, done = "", 0
            for phase, count in runs:
                start = done * width // total
                done += count
                if len(phase) < done * width // total - start:
                    text = text.ljust(start) + phase
            yield text


def columns_of(line: ReportedTimeline, width: int) -> list[tuple[int, ...]]:
    """Bytes of each of `LAYERS` in each column of a panel: those of the largest moment that the column stands for."""
    sums = [tuple(_layers_of(line.categories, moment)) for moment in line.live_bytes]
    edges = [round(len(sums) * column / width) for column in range(width + 1)]
    spans = ((start, max(edges[place + 1], start + 1)) for place, start in enumerate(edges[:-1]))
    return [max(sums[min(start, len(sums) - 1) : end], key=sum) for start, end in spans]


def _layers_of(categories: Sequence[str], moment: Sequence[int]) -> Iterator[int]:
    for layer in LAYERS:
        yield sum(amount for name, amount in zip(categories, moment, strict=True) if Category(name) in layer.categories)


def layer_at(amounts: Sequence[int], height_bytes: float) -> Layer | None:
    """What stands at a height, of amounts stacked from the bottom up."""
    top = 0
    for layer, amount in zip(LAYERS, amounts, strict=True):
        top += amount
        if height_bytes < top:
            return layer
    return None


def legend(ascii_only: bool) -> Text:
    """What the marks mean."""
    from rich.text import Text

    made = Text()
    for layer in LAYERS:
        made.append(layer.plain if ascii_only else layer.mark, style=layer.style).append(f" {layer.name}   ")
    made.rstrip()
    return made
