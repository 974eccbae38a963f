"""A report of sections, each with sentences, a table or a chart: one HTML page, or Markdown with figures beside it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from medyate_planner.errors import InputError
from medyate_planner.files import write_atomic, write_text
from medyate_planner.reporting.html import fill_template
from medyate_planner.reporting.page import Cell, Front, Table
from medyate_planner.reporting.scatter import Chart, draw_chart
from medyate_planner.reporting.tables import safe


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading, what is to be said, and the numbers; `more` are further tables, folded away on the page below what
    `more_title` calls them."""

    id: str
    title: str
    sentences: tuple[str, ...] = ()
    chart: Chart | None = None
    table: Table | None = None
    more: tuple[Table, ...] = ()
    more_title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document(Front):
    """Everything a report says. `command` makes it again."""

    command: str
    sections: tuple[Section, ...]


def render_document_html(document: Document) -> str:
    """One self-contained page; the same document gives the same bytes."""
    return fill_template("document.html", styles=("page.css", "charts.css", "document.css"), page=document)


class Documented(Protocol):
    """What has a document."""

    def document(self) -> Document:
        """All that is to be said."""


def render_document_of(found: Documented) -> str:
    """Its page."""
    return render_document_html(found.document())


def draw_first_chart(found: Documented, path: Path, form: str) -> None:
    """Its first chart as a figure; `form` is png or svg.

    Raises:
        InputError: it has none yet, or matplotlib is not installed.
    """
    charts = [section.chart for section in found.document().sections if section.chart is not None]
    if not charts:
        raise InputError("there is no chart yet: no training with full fine-tuning beside it is done")
    draw_chart(charts[0], path, form)


def write_document(document: Document, folder: Path, *, figures: bool) -> list[Path]:
    """report.html and report.md, and with `figures` a PNG of each chart, each whole or not at all; earlier ones are
    replaced.

    Raises:
        InputError: a file can not be written; figures are asked for, and matplotlib is not installed.
    """
    written = [write_text(folder / "report.html", render_document_html(document), force=True)]
    charts = [section.chart for section in document.sections if section.chart is not None] if figures else []
    for chart in charts:
        path = folder / f"{chart.id}.png"
        write_atomic(path, partial(_draw, chart), force=True)
        written.append(path)
    text = render_document_markdown(document, figures=figures)
    return [*written, write_text(folder / "report.md", text, force=True)]


def _draw(chart: Chart, path: Path) -> None:
    draw_chart(chart, path, "png")


def render_document_markdown(document: Document, *, figures: bool) -> str:
    """The same as Markdown; with `figures`, they are named as `write_document` names them."""
    parts = [f"# {_text(document.title)}", f"{_text(document.kicker)}. Made by `{document.command}`."]
    parts += [_text(sentence) for sentence in document.lead]
    parts.append("\n".join(f"* {_text(name)}: {_text(value)}" for name, value in document.facts))
    for section in document.sections:
        parts.append(f"## {_text(section.title)}")
        parts += [_text(sentence) for sentence in section.sentences]
        if section.chart is not None and figures:
            parts += [f"![{_text(section.chart.caption)}]({section.chart.id}.png)", f"*{_text(section.chart.caption)}*"]
        parts += [_markdown_table(table) for table in ((section.table,) if section.table else ()) + section.more]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(table: Table) -> str:
    numeric = table.numeric or (False,) * len(table.columns)
    rule = "|".join("---:" if number else "---" for number in numeric)
    lines = [f"*{_text(table.caption)}*", "", _row(table.columns), f"|{rule}|"]
    return "\n".join([*lines, *(_row(tuple(_cell(cell) for cell in row)) for row in table.rows)])


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(_text(cell) for cell in cells)} |"


def _cell(cell: Cell) -> str:
    return f"{cell.text} ({cell.note})" if cell.note else cell.text


def _text(text: str) -> str:
    """Plain text within Markdown: what would begin markup is escaped."""
    clean = safe(text)
    for character in "\\`*_[]<>|":
        clean = clean.replace(character, f"\\{character}")
    return clean
