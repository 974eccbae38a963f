"""Real bytes of a planned training step: what autograd holds, which gradients live, what is live at dispatch level.

The same instruments run on real tensors (verify, train) and on fake ones (the dry run), which is how they can agree
to the byte. Workspace that a kernel allocates inside itself is invisible to all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from medyate_planner.memory.moments import Category, Place, Timeline
from medyate_planner.trace import storage_key
from medyate_planner.training.kept import KeptTracker
from medyate_planner.training.live import LiveTracker
from medyate_planner.training.places import Places
from medyate_planner.training.stepping import trial_stepper

LossFunction = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMeasurement:
    """Measured bytes of one step; names as in `Footprint`. `alive_saved_bytes` counts `saved_bytes` a second way:
    storages alive after forward that were not before, outputs excepted (only with live tracking)."""

    training_bytes: int
    saved_bytes: int
    selected_bytes: int
    loss_bytes: int
    gradients_bytes: int
    index_bytes: int
    optimizer_bytes: int
    copy_bytes: int
    update_bytes: int
    live_peak_bytes: int | None
    alive_saved_bytes: int | None
    loss: float | None
    timeline: Timeline | None = None


class StepMeter:
    """Puts the instruments on one training step of a session: `with StepMeter(session, inputs, live=True): ...`.

    `places` (of the graph's nodes, by name) asks for a timeline; `state` is the optimizer's.
    """

    def __init__(
        self,
        session: Any,
        inputs: Iterable[Tensor],
        *,
        live: bool,
        places: Mapping[str, Place] | None = None,
        state: Iterable[Tensor] = (),
    ) -> None:
        self.session = session
        resident = session.resident_tensors()
        held = list(state)
        self._state_bytes = sum(int(tensor.untyped_storage().nbytes()) for tensor in held)
        self.live: LiveTracker | None = None
        if live:
            indices = session.index_tensors()
            already = {
                Category.INDICES: indices,
                Category.WORKING_COPIES: session.copy_tensors(),
                Category.OPTIMIZER_STATE: held,
                Category.WEIGHTS: resident,
                Category.INPUTS: list(inputs),
            }
            found = None if places is None else Places(session.lean, places)
            self.live = LiveTracker(already, places=found)
        ledger = self.live.ledger if self.live is not None else None
        fixed_bytes = session.index_bytes + session.copy_bytes + self._state_bytes
        self.kept = KeptTracker([*resident, *held], fixed_bytes=fixed_bytes, ledger=ledger)
        self._timed = places is not None
        self._stack = ExitStack()

    def enter_phase(self, phase: str) -> None:
        """The next phase of the step begins: "forward" (of a further pass), "loss", "backward" or "optimizer"."""
        if phase == "forward":
            self.kept.begin_forward()
        elif phase == "loss":
            self.kept.phase = phase
        if self.live is not None:
            self.live.phase = phase

    def __enter__(self) -> StepMeter:
        self.session.rule.observers.append(self.kept.gradient)
        self.session.rule.selection_observers.append(self.kept.selected)
        if self.live is not None:
            self._stack.enter_context(self.live)
        self._stack.enter_context(self.kept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        self.session.rule.observers.remove(self.kept.gradient)
        self.session.rule.selection_observers.remove(self.kept.selected)

    def measurement(self, *, loss: float | None, alive_saved_bytes: int | None = None) -> StepMeasurement:
        """The figures of the step that just ended."""
        kept = self.kept
        found = StepMeasurement(
            training_bytes=kept.training_bytes,
            saved_bytes=kept.saved_bytes,
            selected_bytes=kept.selected_bytes,
            loss_bytes=kept.loss_bytes,
            gradients_bytes=kept.gradients_bytes,
            index_bytes=self.session.index_bytes,
            optimizer_bytes=self._state_bytes,
            copy_bytes=self.session.copy_bytes,
            update_bytes=(kept.selected_bytes + kept.all_gradients_bytes + self._state_bytes + self.session.copy_bytes),
            live_peak_bytes=self.live.peak_bytes if self.live else None,
            alive_saved_bytes=alive_saved_bytes,
            loss=loss,
            timeline=self.live.ledger.timeline() if self.live and self._timed else None,
        )
        self.session.measured = found
        return found


def measure_step(
    session: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    target: Any,
    loss_function: LossFunction,
    *,
    places: Mapping[str, Place] | None = None,
) -> StepMeasurement:
    """Run one training step (forward, loss, backward, updates) and measure it in every way.

    In mode `optimizer` a step before it makes the optimizer's state, and gradients are summed over two passes if the
    mode sums over several: from the second on they are all alike.
    """
    inputs = [leaf for leaf in tree_leaves([args, dict(kwargs), target]) if isinstance(leaf, Tensor)]
    stepper = trial_stepper(session)
    if stepper.makes_state:
        loss_function(session(*args, **kwargs), target).backward()  # type: ignore[no-untyped-call]
        stepper.finish()
    with StepMeter(session, inputs, live=True, places=places, state=stepper.tensors()) as meter:
        assert meter.live is not None
        for again in range(min(2, session.mode.accumulation)):
            if again:
                meter.enter_phase("forward")
            before = set(meter.live.ledger.entries())
            outputs = session(*args, **kwargs)
            alive_saved = alive_since(meter.live, before, outputs, meter.kept)
            meter.enter_phase("loss")
            loss = loss_function(outputs, target)
            del outputs
            meter.enter_phase("backward")
            loss.backward()  # type: ignore[no-untyped-call]
        meter.enter_phase("optimizer")
        stepper.finish()
    value = None if isinstance(loss, FakeTensor) else float(loss.detach())
    return meter.measurement(loss=value, alive_saved_bytes=alive_saved)


def _tensors_within(value: Any, depth: int = 3) -> Iterator[Tensor]:
    """Tensors in containers that torch knows, and in the attributes of objects that it does not."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif depth and hasattr(leaf, "__dict__"):
            yield from _tensors_within(list(vars(leaf).values()), depth - 1)


def alive_since(tracker: LiveTracker, before: set[int], outputs: Any, kept: KeptTracker) -> int:
    """Bytes of storages that forward left alive: kept for backward, unless they are only outputs."""
    returned = {storage_key(t) for t in _tensors_within(outputs)}
    held = kept.held()
    inputs_held = sum(nbytes for key, nbytes in held.items() if key in before)
    alive = tracker.ledger.entries()
    fresh = sum(n for key, n in alive.items() if key not in before and (key not in returned or key in held))
    return fresh + inputs_held
