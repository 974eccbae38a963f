"""Closed form of saved and training bytes: what is kept at each moment of a step (DESIGN sections 3, 4 and 8).

Autograd runs backward in exactly the reverse order of forward and releases what an operator holds after that
operator's backward. So a storage is kept from the first operator that holds it to the backward of that same
operator, and the moments that can be the largest are: the end of forward (with the loss), and the backward of each
updated operator, when its gradient is alive beside all that is not yet released.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from medyate_planner.memory.accounting import elements
from medyate_planner.memory.channels import INDEX_BYTES
from medyate_planner.memory.model import MemoryModel, Step, Updates
from medyate_planner.memory.rules import Keep

LOSS_MOMENT = "loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Bytes kept because we train, at one moment: kept storages, loss, gradients alive, indices."""

    at: str
    kept_bytes: int
    loss_bytes: int
    gradient_bytes: int
    index_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.kept_bytes + self.loss_bytes + self.gradient_bytes + self.index_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Predicted bytes of one training step. `training_bytes` is the largest moment; the parts need not coincide.

    `saved_bytes` = selected + pass-through, without the loss. `gradients_bytes` is the most that is alive at once;
    `update_bytes` the plain sum of all gradients and selected activations (scope `update`).
    """

    training_bytes: int
    saved_bytes: int
    selected_bytes: int
    passthrough_bytes: int
    gradients_bytes: int
    loss_bytes: int
    index_bytes: int
    optimizer_bytes: int
    update_bytes: int
    elements: int
    moments: tuple[Moment, ...]

    @property
    def peak_moment(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.total_bytes)


def footprint(model: MemoryModel, updates: Updates) -> Footprint:
    """Evaluate the memory model for these updates: update mode `fused`, SGD.

    Raises:
        InputError: an unknown layer or a quota out of range.
    """
    model.check(updates)
    active = model.active(updates)
    channels = model.channels(updates)
    kept_at: dict[int, int] = {}
    passthrough_bytes = selected_bytes = 0
    seen: set[str] = set()
    for step in model.steps:
        through = _new_passthrough(step, active, seen, channels)
        selected = _selected_at(model, step, channels)
        passthrough_bytes += through
        selected_bytes += selected
        kept_at[step.position] = passthrough_bytes + selected_bytes
    saved_bytes = passthrough_bytes + selected_bytes
    loss_bytes = sum(keep.nbytes for keep in model.loss if keep.key not in seen)
    index_bytes = INDEX_BYTES * sum(n for name, n in channels.items() if name not in updates.full)
    moments = [
        Moment(
            at=LOSS_MOMENT,
            kept_bytes=saved_bytes,
            loss_bytes=loss_bytes,
            gradient_bytes=0,
            index_bytes=index_bytes,
        )
    ]
    gradient = {name: gradient_bytes(model, name, channels.get(name, 0), updates) for name in updates.layers}
    for step in reversed(model.steps):
        alive = sum(
            gradient[name] * copies for name, copies in model.gradient_copies(step.position).items() if name in gradient
        )
        if alive:
            moments.append(
                Moment(
                    at=step.op.name,
                    kept_bytes=kept_at[step.position],
                    loss_bytes=0,
                    gradient_bytes=alive,
                    index_bytes=index_bytes,
                )
            )
    return Footprint(
        training_bytes=max(moment.total_bytes for moment in moments),
        saved_bytes=saved_bytes,
        selected_bytes=selected_bytes,
        passthrough_bytes=passthrough_bytes,
        gradients_bytes=max((moment.gradient_bytes for moment in moments), default=0),
        loss_bytes=loss_bytes,
        index_bytes=index_bytes,
        optimizer_bytes=0,
        update_bytes=selected_bytes + sum(gradient.values()),
        elements=elements(model, updates),
        moments=tuple(moments),
    )


def gradient_bytes(model: MemoryModel, name: str, channels: int, updates: Updates) -> int:
    """Bytes of one layer's gradient: the slice of its selected channels and, if updated, its bias."""
    cost = model.costs[name]
    bias = cost.bias_gradient_bytes if name in updates.biases or name in updates.full else 0
    return cost.gradient_bytes * channels + bias


def _new_passthrough(step: Step, active: frozenset[str], seen: set[str], channels: Mapping[str, int]) -> int:
    """Bytes of the storages that this operator is the first to hold."""
    added = 0
    for keep in held_at(step, active, channels):
        if keep.key not in seen:
            seen.add(keep.key)
            added += keep.nbytes
    return added


def held_at(step: Step, active: frozenset[str], channels: Mapping[str, int]) -> Iterator[Keep]:
    """What an operator holds beside selected channels, when these operators are active and these layers updated."""
    for source, keeps in step.edges:
        if source in active:
            yield from keeps
    if step.layer is not None and channels.get(step.layer.name):
        yield from step.own


def _selected_at(model: MemoryModel, step: Step, channels: Mapping[str, int]) -> int:
    if step.layer is None or not channels.get(step.layer.name):
        return 0
    site = step.layer.sites.index(step.op.name)
    return model.costs[step.layer.name].site_saved_bytes[site] * channels[step.layer.name]
