"""Optimizers and compact parameters kept together, whoever steps the optimizer, in whatever loop.

PyTorch calls the hooks before and after each step of any optimizer. Before: what an optimizer has of redrawn channels
is moved to where they are now. After: the weights are written into the user's model, and the gradients are freed.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from medyate_planner.training.compact import CHANNELS, CompactSlot


class Following:
    """Watches the steps of every optimizer that has parameters of these slots, until `stop`."""

    def __init__(self, slots: Iterable[CompactSlot]) -> None:
        self._slots = {id(parameter): slot for slot in slots for parameter in slot.parameters().values()}
        me = weakref.ref(self)

        def before(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
            if (found := me()) is not None:
                found.before_step(optimizer)

        def after(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
            if (found := me()) is not None:
                found.after_step(optimizer)

        hooks = ExitStack()
        hooks.callback(register_optimizer_step_pre_hook(before).remove)
        hooks.callback(register_optimizer_step_post_hook(after).remove)
        self.stop = weakref.finalize(self, hooks.close)

    def before_step(self, optimizer: Optimizer) -> None:
        """Move the state of redrawn channels; what does not run over channels (a factored state) is dropped whole."""
        for parameter, slot in self._own(optimizer):
            slot.synchronise()
            state = optimizer.state.get(parameter)
            if not state or slot.compact is not parameter or state.get(CHANNELS, slot.channels) == slot.channels:
                continue
            tensors = [value for value in state.values() if isinstance(value, Tensor) and value.numel() > 1]
            if any(value.shape != parameter.shape for value in tensors):
                state.clear()
                continue
            for value in tensors:
                slot.move(value, state[CHANNELS])
            state[CHANNELS] = slot.channels

    def after_step(self, optimizer: Optimizer) -> None:
        """Write the weights, free the gradients, and note to which channels the state belongs."""
        for parameter, slot in self._own(optimizer):
            if slot.compact is parameter:
                slot.write()
            parameter.grad = None
            state = optimizer.state.get(parameter)
            if state and slot.compact is parameter:
                state[CHANNELS] = slot.channels

    def _own(self, optimizer: Optimizer) -> Iterator[tuple[nn.Parameter, CompactSlot]]:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                slot = self._slots.get(id(parameter))
                if slot is not None:
                    yield parameter, slot


def state_tensors(optimizer: Optimizer) -> list[Tensor]:
    """All tensors of an optimizer's state."""
    entries: list[Mapping[str, Any]] = list(optimizer.state.values())
    return [value for entry in entries for value in entry.values() if isinstance(value, Tensor)]
