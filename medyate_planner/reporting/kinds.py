"""Kinds of files that can be shown as a page and as a figure: one entry each, of functions named as module:function.

A page function takes what was read and gives HTML; a figure function takes it, a path, and png or svg.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from medyate_planner.errors import InputError
from medyate_planner.files import write_atomic, write_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How files of one kind are drawn."""

    page: str
    figure: str


KINDS = {
    "report": Kind(page="html:render_html", figure="figures:draw_report"),
    "frontier": Kind(page="frontier_page:render_frontier_html", figure="frontier_figure:draw_frontier"),
    "plan": Kind(page="plan_page:render_plan_html", figure="plan_figure:draw_plan"),
    "run": Kind(page="run_page:render_run_html", figure="run_figure:draw_run"),
    "bench": Kind(page="document:render_document_of", figure="document:draw_first_chart"),
}
ENDINGS = (".html", ".png", ".svg")


def page_of(found: Any) -> str:
    """One of our files as a self-contained page; `found` is what was read from it."""
    html: str = _function(KINDS[found.kind].page)(found)
    return html


def check_drawable(path: Path) -> None:
    """Raise `InputError` for a file whose ending is neither a page's nor a figure's, or that needs an extra."""
    if path.suffix not in ENDINGS:
        raise InputError(
            f"{path}: expected a file that ends in {', '.join(ENDINGS)}, got {path.suffix or 'no ending'!r}"
        )
    if path.suffix != ".html":
        _function("figures:check_available")()


def write_drawn(found: Any, path: Path, *, force: bool) -> Path:
    """Write one of our files as a page or a figure, by the ending, whole or not at all.

    Raises:
        InputError: an unknown ending, an existing file without `force`, or a missing extra.
    """
    check_drawable(path)
    if path.suffix == ".html":
        return write_text(path, page_of(found), force=force)
    draw = _function(KINDS[found.kind].figure)
    return write_atomic(path, lambda temporary: draw(found, temporary, path.suffix[1:]), force=force)


def _function(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(f"{__package__}.{module}"), function)
    return found
