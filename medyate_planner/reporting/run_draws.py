"""Which channels a run drew, and how often: counts, coverage, and the strips of the heat map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil

from medyate_planner.reporting.page import Cell, Table, count_cell
from medyate_planner.reporting.run_view import RunView
from medyate_planner.summary import counted

MOST_COLUMNS = 96
LEVELS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDraws:
    """How often each channel of a layer was drawn, over the draws of a run."""

    name: str
    kind: str
    draws: int
    counts: tuple[int, ...]

    @property
    def covered(self) -> int:
        """Channels that were drawn at least once."""
        return sum(count > 0 for count in self.counts)

    @property
    def coverage(self) -> float:
        """The same as a share of all."""
        return self.covered / len(self.counts)

    @property
    def columns(self) -> tuple[tuple[int, int], ...]:
        """First and last channel (exclusive) of each column of the heat map: one channel, or as many as it takes."""
        width = ceil(len(self.counts) / MOST_COLUMNS)
        return tuple((start, min(start + width, len(self.counts))) for start in range(0, len(self.counts), width))

    @property
    def means(self) -> tuple[float, ...]:
        """Mean count of the channels of each column."""
        return tuple(sum(self.counts[start:end]) / (end - start) for start, end in self.columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatCell:
    """Neighbouring columns of one level, in percent of the strip."""

    css: str
    start: float
    width: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatRow:
    """A layer's strip."""

    name: str
    kind: str
    description: str
    cells: tuple[HeatCell, ...]
    total: Cell


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """All strips, what their colours mean, and how channels were put together."""

    rows: tuple[HeatRow, ...]
    legend: tuple[tuple[str, str], ...]
    note: str


def layer_draws(run: RunView) -> tuple[LayerDraws, ...]:
    """Counts of every layer that is drawn from, in forward order; the head, trained in full, is not."""
    found = []
    for layer in run.plan.layers:
        drawn = [draw.layers[layer.name] for draw in run.draws if layer.name in draw.layers]
        if layer.head or not drawn:
            continue
        times = Counter(channel for channels in drawn for channel in set(channels))
        counts = tuple(times[channel] for channel in range(layer.channels))
        found.append(LayerDraws(name=layer.name, kind=layer.kind, draws=len(run.draws), counts=counts))
    return tuple(found)


def heat_map(layers: Sequence[LayerDraws]) -> HeatMap:
    """One strip for each layer, as wide as all its channels."""
    draws = max((layer.draws for layer in layers), default=0)
    return HeatMap(rows=tuple(map(_row, layers)), legend=_legend(draws), note=_note(layers, draws))


def level_of(mean: float, draws: int) -> int:
    """0 for never, then eight equal steps up to in every draw."""
    return ceil(LEVELS * mean / draws - 1e-9) if draws else 0


def _row(layer: LayerDraws) -> HeatRow:
    levels = [level_of(mean, layer.draws) for mean in layer.means]
    cells = []
    for level, group in groupby(range(len(levels)), key=lambda column: levels[column]):
        run = list(group)
        start, end = layer.columns[run[0]][0], layer.columns[run[-1]][1]
        cells.append(
            HeatCell(
                css=f"h{level}",
                start=round(100 * start / len(layer.counts), 3),
                width=round(100 * (end - start) / len(layer.counts), 3),
                text=_cell_text(layer, start, end),
            )
        )
    covered = f"{layer.covered:,} of {len(layer.counts):,}"
    return HeatRow(
        name=layer.name,
        kind=layer.kind,
        description=f"{covered} channels drawn at least once in {layer.draws:,} draws; the table below has all counts",
        cells=tuple(cells),
        total=Cell(text=covered, value=layer.covered, note=f"{layer.coverage:.1%}"),
    )


def _cell_text(layer: LayerDraws, start: int, end: int) -> str:
    counts = layer.counts[start:end]
    which = f"channel {start}" if end - start == 1 else f"channels {start} to {end - 1}"
    times = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    return f"{which}: {times} of {layer.draws} draws"


def _legend(draws: int) -> tuple[tuple[str, str], ...]:
    if not draws:
        return ()
    if draws <= LEVELS:
        return tuple((f"h{level_of(count, draws)}", _times(count, draws)) for count in range(draws + 1))
    steps = tuple((f"h{level}", f"up to {level / LEVELS:.1%}") for level in range(1, LEVELS))
    return (("h0", "never"), *steps, (f"h{LEVELS}", "more, up to every draw"))


def _times(count: int, draws: int) -> str:
    return "never" if not count else f"in every draw ({draws})" if count == draws else f"{count} of {draws}"


def _note(layers: Sequence[LayerDraws], draws: int) -> str:
    text = f"{counted(draws, 'draw')}. Channels from left to right, each strip as wide as its layer. "
    binned = [layer for layer in layers if len(layer.columns) < len(layer.counts)]
    if not binned:
        return f"{text}One column is one channel."
    widest = max(end - start for layer in binned for start, end in layer.columns)
    joined = "2 neighbours" if widest == 2 else f"2 to {widest} neighbours"
    return (
        f"{text}One column is one channel; in {counted(len(binned), 'layer')} of more than {MOST_COLUMNS} channels it "
        f"is {joined} (the last may be fewer), coloured by the mean of their counts."
    )


def draws_table(layers: Sequence[LayerDraws]) -> Table:
    """Coverage of every layer, and the count of every channel in order."""
    rows = tuple(
        (
            Cell(text=layer.name),
            count_cell(len(layer.counts)),
            count_cell(sum(layer.counts)),
            Cell(
                text=f"{layer.covered:,}",
                value=layer.covered,
                note=f"{layer.coverage:.1%}",
                bar_percent=round(100 * layer.coverage, 2),
            ),
            count_cell(min(layer.counts)),
            count_cell(max(layer.counts)),
            Cell(text=runs_of(layer.counts)),
        )
        for layer in layers
    )
    return Table(
        id="draws",
        caption="How often each channel was drawn",
        columns=("layer", "channels", "drawn in all", "at least once", "least", "most", "of each channel, in order"),
        rows=rows,
        search="layer",
    )


def runs_of(counts: Sequence[int]) -> str:
    """Counts in order; of three or more equal neighbours the number of them: `2 0 1 0×5`."""
    parts = []
    for count, group in groupby(counts):
        length = len(list(group))
        parts += [f"{count}×{length}"] if length >= 3 else [str(count)] * length
    return " ".join(parts)
