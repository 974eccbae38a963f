"""The layers of a plan, in forward order: quotas as bars and as a table, with prices where the plan explains itself."""

from __future__ import annotations

from medyate_planner.planning.explanation import ExplainedUnit
from medyate_planner.planning.plan import Plan, PlannedLayer
from medyate_planner.planning.summary import quota_range, quota_text
from medyate_planner.reporting.page import Bar, Cell, Part, Table, count_cell

QUOTA_PART = Part(css="kept_selected", meaning="channels trained at a time, of all", cell=Cell(text=""))
HEAD_PART = Part(css="kept", meaning="head, in full", cell=Cell(text=""))


def quota_bars(plan: Plan) -> tuple[Bar, ...]:
    """One bar for each layer that is trained: its quota as a share of its channels."""
    prices = _units(plan, "channels")
    return tuple(_bar(plan, layer, prices.get(layer.name)) for layer in plan.layers)


def _bar(plan: Plan, layer: PlannedLayer, price: ExplainedUnit | None) -> Bar:
    _, most = quota_range(plan, layer)
    base = HEAD_PART if layer.head else QUOTA_PART
    share = round(100 * most / layer.channels, 3)
    cell = Cell(text=quota_text(plan, layer), value=most)
    per_kb = None if price is None else price.last_value_per_kb
    return Bar(
        name=layer.name,
        kind=layer.kind,
        total=Cell(text=cell.text, value=most, note="" if per_kb is None else f"{per_kb:.3g} per kB"),
        parts=(Part(css=base.css, meaning=base.meaning, cell=cell, start=0.0, width=share),),
        fits=True,
    )


def trained_table(plan: Plan) -> Table:
    """What is trained: layers, then biases that are trained alone."""
    explained = plan.explanation is not None
    prices, columns = _units(plan, "channels"), ("layer", "kind", "quota", "channels", "share", "bias")
    rows = [
        (*_layer_cells(plan, layer), *(_price_cells(prices.get(layer.name)) if explained else ()))
        for layer in plan.layers
    ]
    return Table(
        id="layers",
        caption="Layers that are trained, in the order of the forward pass"
        + (": value in units of the objective, prices in bytes of the budget's scope" if explained else ""),
        columns=(*columns, "own", "reach", "value per kB", "next per kB", "why") if explained else columns,
        rows=tuple(rows),
        search="layer",
    )


def _layer_cells(plan: Plan, layer: PlannedLayer) -> tuple[Cell, ...]:
    least, most = quota_range(plan, layer)
    share = most / layer.channels
    quota = count_cell(most) if least == most else Cell(text=f"{least:,} to {most:,}", value=most)
    bias = layer.name in plan.biases or layer.head
    return (
        Cell(text=layer.name, note="head, in full" if layer.head else ""),
        Cell(text=layer.kind),
        quota,
        count_cell(layer.channels),
        Cell(text=f"{share:.1%}", value=round(share, 6), bar_percent=round(100 * share, 2)),
        Cell(text="trained" if bias else ""),
    )


def _price_cells(unit: ExplainedUnit | None) -> tuple[Cell, ...]:
    if unit is None:
        return (Cell(text=""),) * 5
    amounts = tuple(
        Cell(text="") if amount is None else count_cell(amount) for amount in (unit.own_bytes, unit.reach_bytes)
    )
    values = tuple(
        Cell(text="") if value is None else Cell(text=f"{value:.3g}", value=value)
        for value in (unit.last_value_per_kb, unit.next_value_per_kb)
    )
    return (*amounts, *values, Cell(text=unit.sentence))


def left_out_table(plan: Plan) -> Table | None:
    """What is not trained and why; None unless the plan says."""
    if plan.explanation is None:
        return None
    units = [unit for unit in plan.explanation.units if not unit.chosen]
    rows = tuple(
        (
            Cell(text=f"bias of {unit.name}" if unit.what == "bias" else unit.name),
            Cell(text=unit.kind),
            count_cell(unit.channels) if unit.what == "channels" else Cell(text=""),
            Cell(text="") if unit.next_value_per_kb is None else _per_kb(unit.next_value_per_kb),
            Cell(text=unit.sentence),
        )
        for unit in units
    )
    columns = ("unit", "kind", "channels", "next per kB", "why")
    return Table(id="left-out", caption="What is left out, and why", columns=columns, rows=rows) if rows else None


def _per_kb(value: float) -> Cell:
    return Cell(text=f"{value:.3g}", value=value)


def _units(plan: Plan, what: str) -> dict[str, ExplainedUnit]:
    units = plan.explanation.units if plan.explanation is not None else ()
    return {unit.name: unit for unit in units if unit.what == what}
