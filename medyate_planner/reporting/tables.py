"""What all views for a terminal share: tables without frames, and names that can not command the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

Column = tuple[str, str]


def table(title: str, *columns: Column) -> Table:
    """A frameless table; each column by heading and justification. Names give way before numbers do."""
    heading = Text(title, style="bold cyan", no_wrap=True, overflow="ignore")  # may be wider than its table
    made = Table(
        title=heading, title_justify="left", title_style="italic", box=None, pad_edge=False, header_style="bold"
    )
    for name, justify in columns:
        right = justify == "right"
        made.add_column(Text(safe(name)), justify="right" if right else "left", no_wrap=right, overflow="fold")
    return made


def put(made: Table, *cells: str, style: str | None = None) -> None:
    """Add a row of plain text: nothing in it is markup, whoever wrote it."""
    made.add_row(*(Text(safe(cell)) for cell in cells), style=style)


def line(text: str) -> Text:
    """A line of text as it is."""
    return Text(safe(text))


def safe(text: str) -> str:
    """Without control characters, which a module's name may hold."""
    return "".join(c if c.isprintable() else "?" for c in text)
