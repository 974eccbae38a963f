"""A report as a file: JSON, CSV, a self-contained page, or a figure, by the file's ending."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from medyate_planner.errors import InputError
from medyate_planner.files import write_atomic, write_text
from medyate_planner.reporting.tables import safe
from medyate_planner.reporting.view import MemoryReport

ENDINGS = (".json", ".csv", ".html", ".png", ".svg")
_FORMULA_STARTS = ("=", "+", "-", "@")  # a spreadsheet would run such a name
_MODULE_COLUMNS = (
    "module", "kind", "parameters", "weights_bytes", "gradients_bytes", "optimizer_bytes", "saved_bytes", "total_bytes",
)  # fmt: skip
_LAYER_COLUMNS = (
    "layer_kind", "channels", "gradient_bytes_per_channel", "saved_bytes_per_channel", "passthrough_bytes", "head",
)  # fmt: skip


def check_ending(path: Path) -> None:
    """Raise `InputError` for a file whose ending names no format, or one that needs what is not installed."""
    if path.suffix not in ENDINGS:
        raise InputError(
            f"{path}: expected a file that ends in {', '.join(ENDINGS)}, got {path.suffix or 'no ending'!r}"
        )
    if path.suffix in (".png", ".svg"):
        from medyate_planner.reporting.figures import check_available

        check_available()


def write_report(report: MemoryReport, path: Path, *, force: bool) -> Path:
    """Write a report, whole or not at all.

    Raises:
        InputError: an unknown ending, an existing file without `force`, or a missing extra.
    """
    check_ending(path)
    if path.suffix == ".json":
        return write_text(path, json.dumps(report.to_dict()) + "\n", force=force)
    if path.suffix == ".csv":
        return write_text(path, report_csv(report), force=force)
    if path.suffix == ".html":
        from medyate_planner.reporting.html import render_html

        return write_text(path, render_html(report), force=force)
    from medyate_planner.reporting.figures import draw_report

    return write_atomic(path, lambda temporary: draw_report(report, temporary, path.suffix[1:]), force=force)


def report_csv(report: MemoryReport) -> str:
    """One row per module (its own bytes in full fine-tuning), beside it what a channel of its layer costs."""
    layers = {layer.name: layer for layer in report.layers}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*_MODULE_COLUMNS, *_LAYER_COLUMNS))
    known = {module.path for module in report.modules}
    for module in report.modules:
        layer = layers.get(module.path)
        costs = ["" if layer is None else getattr(layer, c) for c in ("kind", *_LAYER_COLUMNS[1:])]
        own = [_cell(module.kind), *(getattr(module, column) for column in _MODULE_COLUMNS[2:])]
        writer.writerow((_cell(module.path or "(model)"), *own, *costs))
    for name, layer in layers.items():  # weights that no module of that name holds (a bare parameter, a shared one)
        if name not in known:
            costs = [getattr(layer, column) for column in ("kind", *_LAYER_COLUMNS[1:])]
            writer.writerow((_cell(name), "", 0, 0, 0, 0, 0, 0, *costs))
    return out.getvalue()


def _cell(text: str) -> str:
    clean = safe(text)
    return f"'{clean}" if clean.startswith(_FORMULA_STARTS) else clean
