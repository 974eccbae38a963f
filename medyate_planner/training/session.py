"""`prepare` a model for planned training: a `Session` runs the rewritten graph and redraws channels per interval."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from medyate_planner.errors import InputError, StepOrderError
from medyate_planner.graph import ModelGraph
from medyate_planner.memory.model import MemoryModel, Updates
from medyate_planner.trace import Trace, lookup
from medyate_planner.training.boosting import Boosting
from medyate_planner.training.rewrite import rewrite
from medyate_planner.training.slots import Slot, UpdateRule

Draw = Callable[[int], Mapping[str, Sequence[int]]]


class _StepToken:
    """Alive as long as the autograd graph of one forward is."""

    def __init__(self) -> None:
        self.backward_began = False


class Session:
    """Planned training of a model in update mode `fused`: `session(x)`, a loss, `loss.backward()`, nothing else.

    Weights are updated in place during backward, in the user's own model. Everything not selected stays
    bit-identical. `finish()` (or leaving the `with` block) gives the model back as it was, but for the updates.
    """

    def __init__(
        self, model: nn.Module, traced: Trace, graph: ModelGraph, updates: Updates, draw: Draw | Boosting
    ) -> None:
        self.model = model
        self.graph = graph
        self.updates = updates
        self.rule = UpdateRule()
        self.boosting = draw if isinstance(draw, Boosting) else None
        if self.boosting is not None:
            self.rule.boost = self.boosting.observe
        self._traced = traced
        self._inputs = traced.inputs
        self.training = True
        self._draw: Draw = draw.draw if isinstance(draw, Boosting) else draw
        self._modes = [(module, module.training) for module in model.modules()]
        self._required = [(p, p.requires_grad) for p in model.parameters()]
        self._token: weakref.ref[_StepToken] | None = None
        self._memory = MemoryModel(graph)
        device = next(iter(model.parameters())).device
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self._build(updates)
        for parameter, _ in self._required:
            parameter.requires_grad_(False)
        model.eval()

    def _build(self, updates: Updates) -> None:
        """Slots and lean operators for these updates."""
        self._memory.check(updates)
        self.updates = updates
        self.slots = self._make_slots(self._traced, self._memory)
        by_site = {site: self.slots[name] for name in self.slots for site in self.graph.layer_by_name[name].sites}
        self.lean = rewrite(self._traced.module, self.graph, self._memory.active(updates), by_site, self.anchor)

    def _make_slots(self, traced: Trace, memory: MemoryModel) -> dict[str, Slot]:
        slots = {}
        for layer in self.graph.units:
            if layer.name not in self.updates.layers:
                continue
            full = layer.name in self.updates.full
            bias = layer.bias if full or layer.name in self.updates.biases else None
            slots[layer.name] = Slot(
                layer,
                lookup(traced.module, layer.weight),  # type: ignore[arg-type]
                lookup(traced.module, bias) if bias else None,  # type: ignore[arg-type]
                quota=self.updates.quotas.get(layer.name, 0),
                full=full,
                rule=self.rule,
                sites=len(memory.site_positions[layer.name]),
            )
        return slots

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward: the lean graph in training mode, the user's own model without gradients in evaluation mode.

        Raises:
            StepOrderError: a second forward before the first one's backward (mode `fused`).
            InputError: inputs of another shape than planned for, or more samples: they would break the budget.
        """
        if not self.training:
            self.model.eval()  # the user may have called model.train() in between
            with torch.no_grad():
                return self.model(*args, **kwargs)
        self._check_inputs(args, kwargs)
        pending = self._token() if self._token is not None else None
        if pending is not None and not pending.backward_began:
            raise StepOrderError(
                "a second forward before backward: update mode `fused` changes weights during backward, so gradients "
                "would be wrong; call backward() first, drop the first loss, or use session.eval() to evaluate"
            )
        for slot in self.slots.values():
            slot.begin_step()
        outputs = self.lean(*args, **kwargs)
        self._watch(outputs)
        return outputs

    def _check_inputs(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        for index, spec in enumerate(self._inputs):
            given = kwargs.get(spec.name) if spec.name else (args[index] if index < len(args) else None)
            if not isinstance(given, Tensor) or not given.dim():
                continue
            if given.shape[0] > self.graph.batch_size or tuple(given.shape[1:]) != spec.shape:
                planned = (self.graph.batch_size, *spec.shape)
                raise InputError(
                    f"input {spec.name or index}: the plan was made for {planned}, got {tuple(given.shape)}; a larger "
                    "batch would break the budget: plan again for it"
                )

    def _watch(self, outputs: Any) -> None:
        """Notice when this forward's graph goes into backward or is dropped."""
        tensors = [t for t in tree_leaves(outputs) if isinstance(t, Tensor) and t.requires_grad]
        if not tensors:
            self._token = None
            return
        token = _StepToken()

        def began(_gradient: Tensor, token: _StepToken = token) -> None:
            token.backward_began = True

        for tensor in tensors:
            tensor.register_hook(began)  # type: ignore[no-untyped-call]
        self._token = weakref.ref(token)

    def resample(self, interval: int) -> dict[str, list[int]]:
        """Draw the channels of this interval (an epoch by default) and return them by layer.

        With boosting, what the interval before has seen is applied first; of one and the same interval, nothing is.

        Raises:
            DivergenceError: boosting, and a gradient that was seen is not finite.
            StepOrderError: the layers' quotas change between a forward and its backward.
        """
        drawn = {name: list(channels) for name, channels in self._draw(interval).items()}
        quotas = {name: len(channels) for name, channels in drawn.items() if channels}
        if quotas != dict(self.updates.quotas):
            if self._token is not None and self._token() is not None:
                raise StepOrderError(
                    "channels were redrawn between forward and backward; call resample() between steps"
                )
            self._build(replace(self.updates, quotas=quotas))
        for name, channels in drawn.items():
            self.slots[name].select(channels)
        if self.boosting is not None:
            self.boosting.begin(interval, drawn)
        return drawn

    def sampler_state(self) -> dict[str, Tensor]:
        """What draws to come depend on beside the plan and its importance: tensors on the host, none without boosting.

        Save it with the weights, and give it to `load_sampler_state` to go on as if never stopped.
        """
        return {} if self.boosting is None else self.boosting.state()

    def load_sampler_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `sampler_state` gave, and select the channels of its interval.

        Raises:
            InputError: it is of another plan, or lacking.
        """
        if self.boosting is None:
            if state:
                raise InputError("sampler state: the plan draws without boosting, so there is nothing to load")
            return
        self.boosting.load(state)
        if self.boosting.interval is not None:
            self.resample(self.boosting.interval)

    def set_lr(self, lr: float, *, weight_decay: float | None = None, clip: float | None = None) -> None:
        """Set the step size, and weight decay and per-layer gradient clipping if given (they then stay)."""
        self.rule.lr = lr
        if weight_decay is not None:
            self.rule.weight_decay = weight_decay
        if clip is not None:
            self.rule.clip = clip

    def parameters(self) -> list[nn.Parameter]:
        """Parameters for an optimizer: none in mode `fused`, where the session takes the optimizer's place."""
        return []

    def train(self, mode: bool = True) -> Session:
        """Switch to planned training."""
        self.training = mode
        return self

    def eval(self) -> Session:
        """Switch to evaluation by the user's own model, without gradients."""
        return self.train(False)

    def resident_tensors(self) -> list[Tensor]:
        """Tensors that are there anyway: parameters, buffers, constants and selection indices."""
        found = [
            *self.lean.parameters(),
            *self.lean.buffers(),
            *self.model.parameters(),
            *self.model.buffers(),
        ]
        found += [value for value in vars(self.lean).values() if isinstance(value, Tensor)]
        return found + self.index_tensors()

    def index_tensors(self) -> list[Tensor]:
        """The selection indices of all layers."""
        return [slot.index for slot in self.slots.values() if slot.index is not None]

    @property
    def index_bytes(self) -> int:
        """Bytes of all selection indices."""
        return sum(index.nbytes for index in self.index_tensors())

    def finish(self) -> nn.Module:
        """End planned training: modes and requires_grad as they were. Returns the user's model."""
        for parameter, required in self._required:
            parameter.requires_grad_(required)
        for module, training in self._modes:
            module.training = training
        return self.model

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.finish()
