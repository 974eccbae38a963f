"""What PyTorch keeps for an operator without a rule: telling apart what was seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medyate_planner.graph import MeasuredKeep


def label_fresh(
    alone: Sequence[tuple[MeasuredKeep, ...]], together: tuple[MeasuredKeep, ...] | None
) -> tuple[tuple[MeasuredKeep, ...], ...]:
    """Tell whether the fresh storages seen for different sources are the same ones (a statistic) or not (copies).

    Seen alone they can not be told apart; seen together their sum decides. In doubt they count separately.
    """
    by_source = [
        tuple(replace(k, label=f"{i}:{k.nbytes}") if k.storage is None else k for i, k in enumerate(keeps))
        for keeps in alone
    ]
    if together is None:
        return tuple(by_source)
    shared = {(k.label, k.nbytes) for keeps in by_source for k in keeps if k.storage is None}
    if sum(nbytes for _, nbytes in shared) == sum(k.nbytes for k in together if k.storage is None):
        return tuple(by_source)
    return tuple(
        tuple(replace(k, label=f"{source}.{k.label}") if k.storage is None else k for k in keeps)
        for source, keeps in enumerate(by_source)
    )
