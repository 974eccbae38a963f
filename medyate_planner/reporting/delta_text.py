"""A delta for a person: what it changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from medyate_planner.reporting.tables import line, put, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from medyate_planner.training.delta import Delta


def view_delta(delta: Delta) -> dict[str, Any]:
    """What a delta holds, as JSON types; of a tensor in full, `channels` is null."""
    tensors: list[dict[str, Any]] = [
        {"name": name, "channels": len(part.channels), "of": part.count, "values_bytes": part.values.nbytes}
        for name, part in delta.parts.items()
    ]
    tensors += [
        {"name": name, "channels": None, "of": None, "values_bytes": tensor.nbytes}
        for name, tensor in delta.whole.items()
    ]
    return {
        "schema_version": 1,
        "kind": "delta",
        "model": {"spec": delta.facts.get("model"), "fingerprint": delta.fingerprint},
        "finished": bool(delta.facts.get("finished", True)),
        "values_bytes": delta.values_bytes,
        "tensors": sorted(tensors, key=lambda entry: str(entry["name"])),
    }


def render_delta(view: dict[str, Any]) -> Iterable[RenderableType]:
    """The changed tensors."""
    unfinished = "" if view["finished"] else "; the run was not finished"
    spec = view["model"]["spec"] or "a model made in Python"
    yield line(f"delta of {spec}: {view['values_bytes']:,} B of values{unfinished}")
    made = table("Changed tensors", ("tensor", "left"), ("channels", "right"), ("of", "right"), ("bytes", "right"))
    for entry in view["tensors"]:
        of = "" if entry["of"] is None else f"{entry['of']:,}"
        channels = "in full" if entry["channels"] is None else f"{entry['channels']:,}"
        put(made, entry["name"], channels, of, f"{entry['values_bytes']:,}")
    yield made
