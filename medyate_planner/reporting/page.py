"""What pages consist of: how every one of them begins, tables, and the nouns of a memory report's, which
`page_sections` fills and the template draws."""

from __future__ import annotations

from dataclasses import dataclass

from medyate_planner.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """What every page begins with: its kind, its name, what to know first, the facts, and what to beware of."""

    kicker: str
    title: str
    lead: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell: what is shown, what it is sorted by, a smaller second line, a bar of 0 to 100 percent."""

    text: str
    value: float | None = None
    note: str = ""
    bar_percent: float | None = None
    alert: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table; the first column names the row. With `search`, rows can be sorted and filtered by that name; with
    `cards`, each row is a card on a phone."""

    id: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    total: tuple[Cell, ...] = ()
    search: str = ""
    cards: bool = False

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Which columns hold numbers."""
        return tuple(any(cell.value is not None for cell in column) for column in zip(*self.rows, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Bytes of one category at the peak of a step, or of one kind in a module's bar (`start`, `width`: percent)."""

    css: str
    meaning: str
    cell: Cell
    start: float = 0.0
    width: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """What stands beside the drawing of one step: its peak, and the categories from the top of the stack down."""

    title: str
    description: str
    operator: str
    module: str
    source: str
    phase: str
    position: str
    parts: tuple[Part, ...]
    total: Cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One module's bytes, or those of all the smaller ones together."""

    name: str
    kind: str
    total: Cell
    parts: tuple[Part, ...]
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Front):
    """Everything the page shows but the drawings."""

    capture_error: str | None
    steps: Table
    panels: tuple[Panel, ...]
    bars: tuple[Bar, ...]
    legend: tuple[Part, ...]
    figures: tuple[Table, ...]
    modules: Table
    layers: Table


def bytes_cell(amount: int, *, of: int | None = None, note: str | None = None) -> Cell:
    """Exact bytes, with the human form as the second line; `of` is what a full bar would be."""
    human = format_bytes(amount) if abs(amount) >= 1000 else ""
    percent = None if of is None else round(100 * amount / max(of, 1), 2)
    return Cell(text=f"{amount:,} B", value=amount, note=human if note is None else note, bar_percent=percent)


def count_cell(amount: int) -> Cell:
    """A number without a unit."""
    return Cell(text=f"{amount:,}", value=amount)
