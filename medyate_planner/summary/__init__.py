"""A few lines, a small table and a small figure of one of our results, for a REPL and for a notebook.

Plain data: whoever has a result says what its summary is; here it becomes text, or an HTML fragment without scripts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

MOST_LINES = 6  # rows of text
MOST_ROWS = 24  # rows of the fragment
_CURVE_HEIGHT = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row: its cells, the first names it; `share` (0 to 1) is drawn as a bar."""

    cells: tuple[str, ...]
    share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """An amount against its limit, in words and as a share of it."""

    text: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """A curve without axes; `text` says what it shows, and from where to where."""

    text: str
    values: tuple[float, ...]

    @property
    def points(self) -> str:
        """Corners of the curve in a box of 100 by 40."""
        low, high = min(self.values), max(self.values)
        span, last = (high - low) or 1.0, max(len(self.values) - 1, 1)
        inside = _CURVE_HEIGHT - 4
        heights = (2 + inside * (1 - (value - low) / span) for value in self.values)
        return " ".join(f"{100 * index / last:.2f},{height:.2f}" for index, height in enumerate(heights))


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What is told of a result. `latest`: where not all rows are shown, the last ones are."""

    title: str
    lines: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    share: str = ""
    latest: bool = False
    gauge: Gauge | None = None
    sketches: tuple[Sketch, ...] = ()

    def shown(self, most: int) -> tuple[Row, ...]:
        """At most so many rows."""
        if len(self.rows) <= most:
            return self.rows
        return self.rows[-most:] if self.latest else self.rows[:most]

    def hidden(self, most: int) -> str:
        """What `shown` leaves out, in words."""
        left = len(self.rows) - most
        return "" if left <= 0 else f"{left:,} earlier ones" if self.latest else f"{left:,} more"

    def text(self, most: int = MOST_LINES) -> str:
        """Some lines for a terminal; nothing in them can command it."""
        shown = [self.columns, *(row.cells for row in self.shown(most))] if self.rows else []
        columns = [_padded(column, first=not i) for i, column in enumerate(zip(*shown, strict=True))]
        table = ["  " + "  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
        hidden = self.hidden(most)
        told = [self.title, *self.lines, *table, *([f"  … {hidden}"] if hidden else [])]
        return "\n".join(printable(line) for line in told)

    def html(self, most: int = MOST_ROWS) -> str:
        """A fragment for a notebook: a table and a small figure; styles that reach nothing else, no script."""
        from jinja2 import Environment, StrictUndefined

        environment = Environment(
            autoescape=True,
            finalize=lambda value: printable(value) if type(value) is str else value,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        template = resources.files(__package__).joinpath("fragment.html").read_text(encoding="utf-8")
        return environment.from_string(template).render(it=self, rows=self.shown(most), hidden=self.hidden(most))


def printable(text: str) -> str:
    """The text with a visible placeholder for what can not be printed: control, bidi and separator characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def counted(count: int, one: str, many: str = "") -> str:
    """`1 layer`, `2 layers`."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def the_head(names: Iterable[str]) -> str:
    """`the head (fc)`; the layers of it, but where it is called nothing else than that."""
    layers = " and ".join(sorted(names))
    return "the head" if layers == "head" else f"the head ({layers})"


def against(used_bytes: int, budget_bytes: int) -> str:
    """`108 B below the budget of 512,000 B`."""
    left = budget_bytes - used_bytes
    return f"{abs(left):,} B {'below' if left >= 0 else 'above'} the budget of {budget_bytes:,} B"


def _padded(column: tuple[str, ...], *, first: bool) -> list[str]:
    """The cells of a column at one width, numbers at its right; the first column names rows."""
    width = max(map(len, column))
    numbers = not first and all(cell[:1] in "0123456789-" for cell in column[1:])
    return [cell.rjust(width) if numbers else cell.ljust(width) for cell in column]
