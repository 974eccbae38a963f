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
from medyate_planner.memory.model import MemoryModel, Step, Updates
from medyate_planner.memory.rules import Keep

LOSS_MOMENT = "loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Bytes kept because we train, at one moment: kept storages, loss, gradients alive, indices; `state_bytes` are
    the optimizer's state and working copies."""

    at: str
    kept_bytes: int
    loss_bytes: int
    gradient_bytes: int
    index_bytes: int
    state_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.kept_bytes + self.loss_bytes + self.gradient_bytes + self.index_bytes + self.state_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Predicted bytes of one training step. `training_bytes` is the largest moment; the parts need not coincide.

    `saved_bytes` = selected + pass-through, without the loss. `gradients_bytes` is the most that is alive at once;
    `update_bytes` the plain sum of all gradients, selected activations, optimizer state and working copies (scope
    `update`).
    """

    training_bytes: int
    saved_bytes: int
    selected_bytes: int
    passthrough_bytes: int
    gradients_bytes: int
    loss_bytes: int
    index_bytes: int
    optimizer_bytes: int
    copy_bytes: int
    update_bytes: int
    elements: int
    moments: tuple[Moment, ...]

    @property
    def peak_moment(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.total_bytes)


def footprint(model: MemoryModel, updates: Updates) -> Footprint:
    """Evaluate the memory model, in its update mode, for these updates.

    Raises:
        InputError: an unknown layer or a quota out of range.
    """
    model.check(updates)
    channels = model.channels(updates)
    kept_at, passthrough_bytes, selected_bytes, loss_bytes = _kept(model, updates, channels)
    upkeep = model.upkeep(updates)
    gradient = {name: gradient_bytes(model, name, channels.get(name, 0), updates) for name in updates.layers}
    moments = [
        Moment(
            at=at,
            kept_bytes=passthrough_bytes + selected_bytes if position is None else kept_at[position],
            loss_bytes=loss_bytes if position is None else 0,
            gradient_bytes=alive,
            index_bytes=upkeep.index_bytes,
            state_bytes=upkeep.beside_index_bytes,
        )
        for at, position, alive in _gradients_alive(model, gradient)
    ]
    return Footprint(
        training_bytes=max(moment.total_bytes for moment in moments),
        saved_bytes=passthrough_bytes + selected_bytes,
        selected_bytes=selected_bytes,
        passthrough_bytes=passthrough_bytes,
        gradients_bytes=max((moment.gradient_bytes for moment in moments), default=0),
        loss_bytes=loss_bytes,
        index_bytes=upkeep.index_bytes,
        optimizer_bytes=upkeep.state_bytes,
        copy_bytes=upkeep.copy_bytes,
        update_bytes=selected_bytes + sum(gradient.values()) + upkeep.beside_index_bytes,
        elements=elements(model, updates),
        moments=tuple(moments),
    )


def _kept(model: MemoryModel, updates: Updates, channels: Mapping[str, int]) -> tuple[dict[int, int], int, int, int]:
    """Bytes kept up to each position; pass-through, selected channels, and what the loss keeps beside them."""
    active = model.active(updates)
    kept_at: dict[int, int] = {}
    passthrough_bytes = selected_bytes = 0
    seen: set[str] = set()
    for step in model.steps:
        passthrough_bytes += _new_passthrough(step, active, seen, channels)
        selected_bytes += _selected_at(model, step, channels)
        kept_at[step.position] = passthrough_bytes + selected_bytes
    loss_bytes = sum(keep.nbytes for keep in model.loss if keep.key not in seen)
    return kept_at, passthrough_bytes, selected_bytes, loss_bytes


def _gradients_alive(model: MemoryModel, gradient: Mapping[str, int]) -> Iterator[tuple[str, int | None, int]]:
    """The moments: the end of forward (no position), and the backward of each operator that has gradients alive, with
    their bytes. In mode `fused` a gradient is gone when it is applied; else it waits for the optimizer."""
    waiting = sum(gradient.values()) if model.gradients_outlive_backward else 0
    yield LOSS_MOMENT, None, waiting
    for step in reversed(model.steps):
        copies = model.gradient_copies(step.position)
        alive = waiting + sum(gradient[name] * count for name, count in copies.items() if name in gradient)
        if alive:
            yield step.op.name, step.position, alive
        if not model.mode.is_fused and not model.gradients_outlive_backward:
            waiting += sum(gradient.get(name, 0) for name in model.first_sites.get(step.position, ()))


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
