"""Real bytes of a training step: what autograd holds, which gradients live, what is live at dispatch level.

The same instruments run on real tensors (verify, train) and on fake ones (the dry run), which is how they can agree
to the byte. Workspace that a kernel allocates inside itself is invisible to all of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medyate_planner.trace import storage_key

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
    update_bytes: int
    live_peak_bytes: int | None
    alive_saved_bytes: int | None
    loss: float | None


class _Packed:
    """What autograd holds instead of a saved tensor; tells its keeper when it is let go."""

    __slots__ = ("keeper", "key", "tensor")

    def __init__(self, tensor: Tensor, key: int, keeper: KeptTracker) -> None:
        self.tensor, self.key, self.keeper = tensor, key, keeper

    def __del__(self) -> None:
        self.keeper.released(self.key)


class KeptTracker:
    """Saved-tensor hooks that count distinct storages held for backward, and the gradient slices beside them."""

    def __init__(self, resident: Iterable[Tensor], *, index_bytes: int = 0) -> None:
        self._resident = {storage_key(tensor) for tensor in resident}
        self._holders: dict[int, int] = {}
        self._bytes: dict[int, int] = {}
        self._selected: set[int] = set()
        self._gradients_now = 0
        self._kept_now = 0
        self.index_bytes = index_bytes
        self.phase = "model"
        self.saved_bytes = self.selected_bytes = self.loss_bytes = self.gradients_bytes = 0
        self.all_gradients_bytes = 0
        self.training_bytes = index_bytes
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda packed: packed.tensor)

    def __enter__(self) -> KeptTracker:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> _Packed:
        key = storage_key(tensor)
        if key not in self._resident:
            self._holders[key] = self._holders.get(key, 0) + 1
            if self._holders[key] == 1:
                nbytes = int(tensor.untyped_storage().nbytes())
                self._bytes[key] = nbytes
                self._kept_now += nbytes
                if self.phase == "loss":
                    self.loss_bytes += nbytes
                else:
                    self.saved_bytes += nbytes
                if key in self._selected:
                    self.selected_bytes += nbytes
                    self._selected.discard(key)
                self._note_peak()
        return _Packed(tensor, key, self)

    def released(self, key: int) -> None:
        """A packed object was let go: its storage is no longer kept once all its holders are."""
        if key in self._holders:
            self._holders[key] -= 1
            if not self._holders[key]:
                del self._holders[key]
                self._kept_now -= self._bytes.pop(key)

    def selected(self, tensor: Tensor) -> None:
        """A compact copy of selected channels is about to be saved."""
        self._selected.add(storage_key(tensor))

    def gradient(self, tensor: Tensor, first: bool) -> None:
        """A weight gradient came into being; it counts until its storage is freed.

        `first`: it is not one more part of a gradient that a reused layer sums.
        """
        nbytes = int(tensor.untyped_storage().nbytes())
        self._gradients_now += nbytes
        self.all_gradients_bytes += nbytes if first else 0
        self.gradients_bytes = max(self.gradients_bytes, self._gradients_now)
        weakref.finalize(tensor.untyped_storage(), self._gradient_freed, nbytes)
        self._note_peak()

    def _gradient_freed(self, nbytes: int) -> None:
        self._gradients_now -= nbytes

    def _note_peak(self) -> None:
        self.training_bytes = max(self.training_bytes, self._kept_now + self._gradients_now + self.index_bytes)


class LiveTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The largest sum of live tensor storages, seen after every operator at dispatch level."""

    def __init__(self, already: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: dict[int, int] = {}
        self.now_bytes = self.peak_bytes = 0
        for tensor in already:
            self._note(tensor)

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = int(storage._cdata)
        if key in self.live:
            return
        nbytes = int(storage.nbytes())
        self.live[key] = nbytes
        self.now_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.now_bytes -= self.live.pop(key, 0)


class StepMeter:
    """Puts the instruments on one training step of a session: `with StepMeter(session, inputs, live=True): ...`."""

    def __init__(self, session: Any, inputs: Iterable[Tensor], *, live: bool) -> None:
        self.session = session
        resident = session.resident_tensors()
        self.kept = KeptTracker(resident, index_bytes=session.index_bytes)
        self.live = LiveTracker([*resident, *inputs]) if live else None
        self._stack = ExitStack()

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
        return StepMeasurement(
            training_bytes=kept.training_bytes,
            saved_bytes=kept.saved_bytes,
            selected_bytes=kept.selected_bytes,
            loss_bytes=kept.loss_bytes,
            gradients_bytes=kept.gradients_bytes,
            index_bytes=kept.index_bytes,
            update_bytes=kept.selected_bytes + kept.all_gradients_bytes,
            live_peak_bytes=self.live.peak_bytes if self.live else None,
            alive_saved_bytes=alive_saved_bytes,
            loss=loss,
        )


def measure_step(
    session: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    target: Any,
    loss_function: LossFunction,
) -> StepMeasurement:
    """Run one training step (forward, loss, backward with its updates) and measure it in every way."""
    inputs = [leaf for leaf in tree_leaves([args, dict(kwargs), target]) if isinstance(leaf, Tensor)]
    with StepMeter(session, inputs, live=True) as meter:
        assert meter.live is not None
        before = set(meter.live.live)
        outputs = session(*args, **kwargs)
        alive_saved = _alive_since(meter.live, before, outputs, meter.kept)
        meter.kept.phase = "loss"
        loss = loss_function(outputs, target)
        del outputs
        loss.backward()  # type: ignore[no-untyped-call]
    value = None if isinstance(loss, FakeTensor) else float(loss.detach())
    return meter.measurement(loss=value, alive_saved_bytes=alive_saved)


def _alive_since(tracker: LiveTracker, before: set[int], outputs: Any, kept: KeptTracker) -> int:
    """Bytes of storages that forward left alive: kept for backward, unless they are only outputs."""
    returned = {storage_key(t) for t in tree_leaves(outputs) if isinstance(t, Tensor)}
    held = kept._holders
    inputs_held = sum(kept._bytes[key] for key in held if key in before)
    fresh = sum(n for key, n in tracker.live.items() if key not in before and (key not in returned or key in held))
    return fresh + inputs_held
