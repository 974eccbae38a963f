"""`prepare` a model for planned training: a `Session` runs the rewritten graph and redraws channels per interval."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from medyate_planner.errors import InputError, StepOrderError
from medyate_planner.graph import ModelGraph
from medyate_planner.memory.mode import FUSED, UpdateMode
from medyate_planner.memory.model import MemoryModel, Updates
from medyate_planner.trace import Trace, lookup
from medyate_planner.trace.casts import autocasting
from medyate_planner.training.boosting import Boosting
from medyate_planner.training.compact import CompactSlot
from medyate_planner.training.following import Following
from medyate_planner.training.fused import FusedSlot
from medyate_planner.training.originals import Originals
from medyate_planner.training.rewrite import batch_counters, rewrite
from medyate_planner.training.slots import Slot, UpdateRule
from medyate_planner.training.straight import straight
from medyate_planner.training.summary import summary_of_session

if TYPE_CHECKING:
    from medyate_planner.planning.plan import Plan
    from medyate_planner.training.measure import StepMeasurement

Draw = Callable[[int], Mapping[str, Sequence[int]]]


class _StepToken:
    """Alive as long as the autograd graph of one forward is."""

    def __init__(self) -> None:
        self.backward_began = False


class Session:
    """Planned training of a model: `session(x)`, a loss, `loss.backward()`.

    Mode `fused`: that is all; weights are updated in place during backward, by the step size of `set_lr`. Mode
    `optimizer`: `parameters()` are for any torch optimizer; its step writes the weights into the user's own model and
    frees the gradients. Everything not selected stays bit-identical. `finish()` (or leaving the `with` block) gives
    the model back as it was, but for the updates.
    """

    def __init__(
        self,
        model: nn.Module,
        traced: Trace,
        graph: ModelGraph,
        updates: Updates,
        draw: Draw | Boosting,
        *,
        mode: UpdateMode = FUSED,
    ) -> None:
        self.model = model
        self.graph = graph
        self.mode = mode
        self.plan: Plan | None = None  # that `prepare` was given
        self.measured: StepMeasurement | None = None  # the last step that was
        self.finished = False
        self.closing = ExitStack()  # what else is to be undone when it ends
        self.before_forward: Callable[[], None] | None = None  # called at the start of every training forward
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
        self._forward: Callable[..., Any] | None = None
        self._token: weakref.ref[_StepToken] | None = None
        self._memory = MemoryModel(graph, mode=mode)
        self._counters = batch_counters(model, traced.module, graph)
        self._following: Following | None = None
        self._originals: Originals | None = None
        device = next(iter(model.parameters())).device
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self._build(updates)
        for parameter, _ in self._required:
            parameter.requires_grad_(False)
        for parameter in self.parameters():
            parameter.requires_grad_(True)
        model.eval()

    def _build(self, updates: Updates) -> None:
        """Slots and lean operators for these updates."""
        self._memory.check(updates)
        self.updates = updates
        self.slots = self._make_slots(self._traced, self._memory)
        by_site = {site: self.slots[name] for name in self.slots for site in self.graph.layer_by_name[name].sites}
        self.lean = rewrite(self._traced.module, self.graph, self._memory.active(updates), by_site)
        self._straight = straight(self.lean)
        if not self.mode.is_fused:
            self._following = Following(self._compact_slots())

    def _make_slots(self, traced: Trace, memory: MemoryModel) -> dict[str, Slot]:
        slots: dict[str, Slot] = {}
        for layer in self.graph.units:
            if layer.name not in self.updates.layers:
                continue
            full = layer.name in self.updates.full
            bias = layer.bias if full or layer.name in self.updates.biases else None
            facts: dict[str, Any] = {
                "quota": self.updates.quotas.get(layer.name, 0),
                "full": full,
                "rule": self.rule,
                "sites": len(memory.site_positions[layer.name]),
            }
            weights = lookup(traced.module, layer.weight), lookup(traced.module, bias) if bias else None
            if self.mode.is_fused:
                slots[layer.name] = FusedSlot(layer, *weights, anchor=self.anchor, **facts)
            else:
                slots[layer.name] = CompactSlot(layer, *weights, **facts)
        return slots

    def _compact_slots(self) -> list[CompactSlot]:
        return [slot for slot in self.slots.values() if isinstance(slot, CompactSlot)]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward: the lean graph in training mode, the user's own model without gradients in evaluation mode.

        In mode `optimizer` several forwards may come before a backward, and several passes before a step.

        Raises:
            StepOrderError: a second forward before the first one's backward (mode `fused`).
            InputError: inputs of another shape than planned for, or more samples: they would break the budget.
        """
        if not self.training:
            self.write()
            self.model.eval()  # the user may have called model.train() in between
            with torch.no_grad(), self.autocast():
                return self.model(*args, **kwargs)
        return self.run(args, kwargs)

    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Forward of the lean graph; errors as for a call."""
        kind = self.anchor.device.type
        if torch.is_autocast_enabled(kind):
            self._check_autocast(kind)
            with torch.autocast(kind, enabled=False):  # its casts are operators of the graph
                return self.run(args, kwargs)
        self._check_inputs(args, kwargs)
        if self.before_forward is not None:
            self.before_forward()
        pending = self._token() if self._token is not None else None
        if self.mode.is_fused and pending is not None and not pending.backward_began:
            raise StepOrderError(
                "a second forward before backward: update mode `fused` changes weights during backward, so gradients "
                "would be wrong; call backward() first, drop the first loss, or use session.eval() to evaluate"
            )
        for slot in self.slots.values():
            slot.begin_step()
        for counter in self._counters:
            counter.add_(1)
        execute = self._straight if isinstance(self.lean, fx.GraphModule) else self.lean  # a graph put in its place
        outputs = execute(*args, **kwargs)
        self._watch(outputs)
        return outputs

    def autocast(self) -> AbstractContextManager[Any]:
        """The autocast that was planned for, around the user's own model; nothing if none was."""
        return autocasting(self._traced.autocast, self.anchor.device.type)

    def _check_autocast(self, kind: str) -> None:
        within, planned = str(torch.get_autocast_dtype(kind)).removeprefix("torch."), self._traced.autocast
        if within != planned:
            raise InputError(
                f"a training step under autocast {within} with a plan made for {planned or 'no autocast'}: what it "
                f"keeps would be of another type; plan again with --autocast {within}"
            )

    def _check_inputs(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        for index, spec in enumerate(self._inputs):
            given = kwargs.get(spec.name) if spec.name else (args[index] if index < len(args) else None)
            if not isinstance(given, Tensor) or not given.dim():
                continue
            if given.shape[0] > self.graph.batch_size or tuple(given.shape[1:]) != spec.shape:
                planned = (self.graph.batch_size, *spec.shape)
                same = tuple(given.shape[1:]) == spec.shape
                advice = (
                    "a larger batch would break the budget: plan again for it"
                    if same
                    else (f"make each sample of the data {spec.shape}, or plan again with its shape")
                )
                raise InputError(
                    f"input {spec.name or index}: the plan was made for {planned}, got {tuple(given.shape)}; {advice}"
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
            InputError: they change in mode `optimizer`, whose parameters have constant shapes.
        """
        drawn = {name: list(channels) for name, channels in self._draw(interval).items()}
        quotas = {name: len(channels) for name, channels in drawn.items() if channels}
        if quotas != dict(self.updates.quotas):
            if not self.mode.is_fused:
                raise InputError(
                    "the plan's quotas change between intervals: that needs update mode fused; plan again without "
                    "--update optimizer, or with a strategy that has one quota for each layer"
                )
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
        return list(self.named_parameters().values())

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The same by the names of the user's own parameters; of a layer trained by channels the selected ones, in the
        form of their gradient (`Slot.gather`)."""
        return {name: p for slot in self._compact_slots() for name, p in slot.parameters().items()}

    def write(self) -> None:
        """Bring the user's model up to date with the parameters; the optimizer's step does so by itself."""
        for slot in self._compact_slots():
            slot.synchronise()

    def attach(self) -> Session:
        """Make `model(...)` itself run planned training whenever the model is in training mode, and as ever in
        evaluation mode, so that a framework's loop can call it; until `finish()`."""
        if self._forward is None:
            original = self.model.forward

            @functools.wraps(original)
            def forward(*args: Any, **kwargs: Any) -> Any:
                if self.model.training:
                    return self.run(args, kwargs)
                self.write()
                return original(*args, **kwargs)

            self._forward = original
            self.model.forward = forward
        return self

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
        return [*found, self.anchor, *self.index_tensors(), *self.copy_tensors()]

    def copy_tensors(self) -> list[Tensor]:
        """The working copies of selected channels."""
        return [slot.compact for slot in self._compact_slots() if slot.compact is not None]

    @property
    def copy_bytes(self) -> int:
        """Bytes of all working copies."""
        return sum(copy.nbytes for copy in self.copy_tensors())

    def index_tensors(self) -> list[Tensor]:
        """The selection indices of all layers."""
        return [slot.index for slot in self.slots.values() if slot.index is not None]

    @property
    def index_bytes(self) -> int:
        """Bytes of all selection indices."""
        return sum(index.nbytes for index in self.index_tensors())

    def finish(self) -> nn.Module:
        """End planned training: modes, forward and requires_grad as they were. Returns the user's model."""
        self.write()
        self.finished = True
        self.closing.close()
        if self._following is not None:
            self._following.stop()
        if self._forward is not None:
            del self.model.forward
            self._forward = None
        for parameter in self.parameters():
            parameter.grad = None
        for parameter, required in self._required:
            parameter.requires_grad_(required)
        for module, training in self._modes:
            module.training = training
        return self.model

    def keep_originals(self) -> Session:
        """Write the weights to a temporary file now, so that `undo` can put them back."""
        self._originals = Originals(self.model)
        return self

    def undo(self) -> nn.Module:
        """End planned training and put every weight and buffer back, bit for bit, as at `keep_originals`.

        Raises:
            InputError: it was not called.
        """
        if self._originals is None:
            raise InputError("undo: the original weights were not kept; call keep_originals() before training")
        model = self.finish()
        self._originals.restore(model)
        self._originals = None
        return model

    def __repr__(self) -> str:
        """A few lines: what is trained now, against the budget."""
        return summary_of_session(self).text()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return summary_of_session(self).html()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.finish()
