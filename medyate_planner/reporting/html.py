"""The memory report as one HTML page that needs no network: plain data first (`page`, `drawing_of`), then the template.

The page's content security policy forbids every script and style but the two that are hashed here, so that even a name
that escaped the escaping could do nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from itertools import groupby
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from medyate_planner.reporting.page import Front
from medyate_planner.reporting.page_sections import css_class, description_of, meaning_of, page_of
from medyate_planner.reporting.view import MemoryReport, ReportedStep
from medyate_planner.summary import printable
from medyate_planner.units import format_bytes

_SHARED = ("base.html", "macros.html", "charts.html")  # what templates extend and import
_IN_JSON = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def render_html(report: MemoryReport) -> str:
    """Draw a memory report as one self-contained page; the same report gives the same bytes."""
    data = Markup(embedded_json(drawing_of(report.steps)))
    return fill_template("report.html", page=page_of(report), styles=("page.css",), script="page.js", data=data)


def fill_template(name: str, *, page: Front, styles: Iterable[str], script: str = "", **context: Any) -> str:
    """One of our templates, which extend base.html, with its style sheets and its script inside, whose hashes the
    page's security policy names; all text is escaped."""
    environment = Environment(
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=DictLoader({part: _asset(part) for part in _SHARED}),
    )
    style, code = "".join(map(_asset, styles)), _asset(script) if script else ""
    inside = {"style": Markup(style), "script": Markup(code), "style_hash": _hash(style), "script_hash": _hash(code)}
    return environment.from_string(_asset(name)).render(page=page, **inside, **context)


def embedded_json(data: Any) -> str:
    """JSON that can stand inside a `script` element: no character that could end it."""
    return json.dumps(data, separators=(",", ":")).translate(_IN_JSON)


def drawing_of(steps: Sequence[ReportedStep]) -> dict[str, Any]:
    """The timelines for the page's script: column-wise, equal texts stored once (columns of texts are indices)."""
    texts = _Texts()
    common = axis_ticks(max((step.timeline.peak_bytes for step in steps), default=0))
    drawn = [_drawn_step(step, texts) for step in steps]
    return {"texts": texts.all(), "common_ticks": _ticks(common), "steps": drawn}


def axis_ticks(largest_bytes: int) -> tuple[int, ...]:
    """Round amounts from 0 to one that is not below the largest: at most six steps of 1, 2 or 5 powers of ten."""
    step = 1
    while 6 * step < largest_bytes:
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    return tuple(range(0, max(largest_bytes, 1) + step, step))


class _Texts:
    """Texts, each stored once."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}

    def index_of(self, text: str) -> int:
        return self._index.setdefault(text, len(self._index))

    def all(self) -> list[str]:
        return [printable(text) for text in self._index]


def _drawn_step(step: ReportedStep, texts: _Texts) -> dict[str, Any]:
    line = step.timeline
    totals = [sum(moment) for moment in line.live_bytes]
    return {
        "name": step.name,
        "saved_bytes": step.saved_bytes,
        "training_bytes": step.training_bytes,
        "live_peak_bytes": step.live_peak_bytes,
        "description": printable(description_of(step)),
        "categories": [{"css": css_class(name), "meaning": printable(meaning_of(name))} for name in line.categories],
        "phases": _phases(line.phase),
        "operator": [texts.index_of(text) for text in line.operator],
        "module": [texts.index_of(text) for text in line.module],
        "source": [texts.index_of(text) for text in line.source],
        "live_bytes": [list(column) for column in zip(*line.live_bytes, strict=True)],
        "total_bytes": totals,
        "total_text": [texts.index_of(format_bytes(total)) for total in totals],
        "peak_index": line.peak_index,
        "ticks": _ticks(axis_ticks(line.peak_bytes)),
    }


def _phases(phase: Iterable[str]) -> list[dict[str, Any]]:
    """Runs of equal phases: `start` is the first operator, `end` the one after the last."""
    runs, start = [], 0
    for name, group in groupby(phase):
        end = start + len(list(group))
        runs.append({"name": printable(name), "start": start, "end": end})
        start = end
    return runs


def _ticks(amounts: Iterable[int]) -> list[dict[str, Any]]:
    return [{"bytes": amount, "text": format_bytes(amount)} for amount in amounts]


def _printable(value: Any) -> Any:
    """What the template is about to print; markup is ours (style, script, data, macros)."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("templates").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
