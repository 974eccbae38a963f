"""Importance in a few words, for a REPL and a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medyate_planner.importance.metrics import rank_layers
from medyate_planner.summary import Row, Summary, counted

if TYPE_CHECKING:
    from medyate_planner.importance.energy import Importance


def summary_of(importance: Importance) -> Summary:
    """The layers by raw importance, the largest first."""
    ranking = rank_layers(importance, "raw", dict.fromkeys(importance.energy, 1))
    head = "with the head warmed up" if importance.head else "with the head as it is"
    return Summary(
        title=f"Importance: {importance.source}",
        lines=(f"{counted(len(ranking), 'layer')}, {head}; model {importance.fingerprint[:12]}.",),
        columns=("layer", "channels", "raw", "share"),
        rows=tuple(
            Row(
                cells=(
                    entry.name,
                    f"{len(importance.energy[entry.name]):,}",
                    f"{entry.score:.4g}",
                    f"{entry.share:.1%}",
                ),
                share=entry.share,
            )
            for entry in ranking
        ),
        share="of all",
    )
