"""Measure gradient energy per channel in rounds that each fit a budget, by the lean executor itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medyate_planner.errors import CertificationError, DivergenceError, InputError
from medyate_planner.graph import ModelGraph
from medyate_planner.importance.energy import Importance, Vector
from medyate_planner.planning.rounds import Packing, Round
from medyate_planner.training.boosting import squares_of_selection
from medyate_planner.training.loop import invoke, tensors_of
from medyate_planner.training.measure import LossFunction, StepMeter
from medyate_planner.training.randomness import random_state, restore_random_state
from medyate_planner.training.session import Session
from medyate_planner.training.slots import Slot

Batch = tuple[Any, Any]


def probe_in_rounds(
    graph: ModelGraph,
    packing: Packing,
    batches: Callable[[], Iterable[Batch]],
    loss_function: LossFunction,
    *,
    open_session: Callable[[Round], Session],
    on_batch: Callable[[], None] = lambda: None,
) -> Importance:
    """Mean of ||g_c||² and of ||g_c|| over mini-batches, as `importance.gradients.probe`, without breaking a budget.

    Every step is measured, and no weight is changed. What does not fit the budget, or has no way to the loss, is 0.
    Every round starts from the random state that was found, so that batches and dropout drawn from it are the same.

    Args:
        graph: The model's graph at the batch size.
        packing: The rounds.
        batches: Called anew for each round; should give the same ones each time, or layers are compared on unlike data.
        loss_function: Of outputs and target.
        open_session: A session that trains what a round measures.
        on_batch: Called after every step, of which each round has one a batch.

    Raises:
        CertificationError: a step was measured above the budget. The measurement stops at once.
        InputError: no batch.
        DivergenceError: a loss or gradient is not finite.

    Limits: the results, 16 B a channel, stand beside the budget. Where dropout is kept, gradients are those with it.
    """
    seen = _Seen(graph)
    largest_bytes = count = 0
    for number, chosen in enumerate(packing.rounds, start=1):
        where = f"round {number} of {len(packing.rounds)}"
        with open_session(chosen) as session, _same_random_state(session):
            session.train().resample(0)
            session.set_lr(0.0)
            seen.watch(session, chosen)
            count = 0
            for batch in batches():
                largest_bytes = max(largest_bytes, _step(session, batch, loss_function, packing.budget_bytes, where))
                count += 1
                on_batch()
        if not count:
            raise InputError("no batch to measure importance on: the training set is smaller than one batch")
    return seen.importance(graph, packing, count, largest_bytes)


class _Seen:
    """Sums over mini-batches of what is seen of every channel and bias."""

    def __init__(self, graph: ModelGraph) -> None:
        self.energy = {unit.name: np.zeros(unit.channels) for unit in graph.units}
        self.norms = {unit.name: np.zeros(unit.channels) for unit in graph.units}
        self.bias_energy = {unit.name: 0.0 for unit in graph.units if unit.bias}

    def watch(self, session: Session, chosen: Round) -> None:
        """Add up the gradients that a session makes of a round's channels and biases."""

        def tap(slot: Slot, weight_gradient: Tensor | None, bias_gradient: Tensor | None) -> None:
            name = slot.layer.name
            if weight_gradient is not None:
                squares = _finite(name, squares_of_selection(slot.layer, weight_gradient))
                part = slice(chosen.channels[name].start, chosen.channels[name].stop)
                self.energy[name][part] += squares
                self.norms[name][part] += np.sqrt(squares)
            if bias_gradient is not None:
                norm = torch.linalg.vector_norm(bias_gradient, dtype=torch.float64)
                self.bias_energy[name] += float(_finite(name, np.square(norm.cpu().numpy())))

        session.rule.tap = tap

    def importance(self, graph: ModelGraph, packing: Packing, batches: int, largest_bytes: int) -> Importance:
        """The means over mini-batches, and how they were come by."""
        count, rounds = max(1, batches), len(packing.rounds)
        return Importance(
            energy={name: total / count for name, total in self.energy.items()},
            norms={name: total / count for name, total in self.norms.items()},
            bias_energy={name: total / count for name, total in self.bias_energy.items()},
            fingerprint=graph.fingerprint,
            source=f"gradients of {batches} mini-batches, in {rounds} rounds within {packing.budget_bytes:,} B",
            facts={
                "batches": batches,
                "batch_size": graph.batch_size,
                "budget_bytes": packing.budget_bytes,
                "rounds": rounds,
                "measured_training_bytes": largest_bytes,
                "beyond_budget": list(packing.beyond_budget),
            },
        )


@contextmanager
def _same_random_state(session: Session) -> Iterator[None]:
    """Leave all random generators as they were found."""
    device = session.anchor.device
    found = random_state(device)
    try:
        yield
    finally:
        restore_random_state(found, device)


def _step(session: Session, batch: Batch, loss_function: LossFunction, budget_bytes: int, where: str) -> int:
    """One step that changes nothing; the training bytes that it was measured to hold."""
    x, target = batch
    with StepMeter(session, tensors_of(batch), live=False) as meter:
        outputs = invoke(session, x)
        meter.enter_phase("loss")
        loss = loss_function(outputs, target)
        del outputs  # nothing but the graph holds them in backward
        value = float(loss.detach())
        if not np.isfinite(value):
            raise DivergenceError(f"{where}: the loss is {value}; check the data and its normalisation")
        _require_within(budget_bytes, meter, where)
        meter.enter_phase("backward")
        loss.backward()  # type: ignore[no-untyped-call]
    return _require_within(budget_bytes, meter, where)


def _finite(name: str, squares: Vector) -> Vector:
    if not np.isfinite(squares).all():
        raise DivergenceError(f"layer {name}: the gradient is not finite; check the data and its normalisation")
    return squares


def _require_within(budget_bytes: int, meter: StepMeter, where: str) -> int:
    """What the step has held so far, unless that is above the budget."""
    measured_bytes = meter.measurement(loss=None).training_bytes
    if measured_bytes > budget_bytes:
        raise CertificationError(
            f"{where}: a step held {measured_bytes:,} B of training memory, above the budget of {budget_bytes:,} B "
            "that it was predicted to fit, so importance was not measured any further; does the loss keep more than "
            "the one that the model was traced with, or is a target a view of something larger?",
            measured_bytes=measured_bytes,
            budget_bytes=budget_bytes,
        )
    return measured_bytes
