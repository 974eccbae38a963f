"""The dry run: a training step on fake tensors, which certifies a plan before any real memory is spent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from medyate_planner.errors import InputError
from medyate_planner.graph import ModelGraph
from medyate_planner.memory.mode import FUSED, UpdateMode
from medyate_planner.memory.model import LossCost, Updates
from medyate_planner.memory.moments import Category, Place
from medyate_planner.memory.rules import Keep
from medyate_planner.trace import Trace, storage_key
from medyate_planner.trace.casts import autocasting
from medyate_planner.trace.twin import Twins
from medyate_planner.training.live import LiveTracker
from medyate_planner.training.measure import LossFunction, StepMeasurement, measure_step
from medyate_planner.training.ordinary import fake_batch
from medyate_planner.training.session import Session

MakeTarget = Callable[[Any], Any]


def dry_run(
    traced: Trace,
    graph: ModelGraph,
    updates: Updates,
    loss_function: LossFunction,
    make_target: MakeTarget,
    *,
    mode: UpdateMode = FUSED,
    timeline: bool = False,
) -> StepMeasurement:
    """Run a step of the prepared model on fake tensors and measure it with the instruments of a real step.

    `make_target(outputs)` gives a target of the right shape for the loss; it is called with fake outputs.
    `timeline` notes what is live after every operator, and where in the model that was.
    """
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    fake = _fake_trace(traced, fakes)
    args, kwargs = fake_batch(traced.inputs, graph.batch_size, traced.device, fakes)
    with fakes, autocasting(None, traced.device):
        target = make_target(traced.fake_outputs(graph.batch_size, fakes))
        session = Session(fake.module, fake, graph, updates, lambda _interval: {}, mode=mode)
        session.set_lr(0.01, clip=5.0)
        places = {op.name: Place(op.module_path, op.source_line) for op in graph.ops} if timeline else None
        return measure_step(session, args, kwargs, target, loss_function, places=places)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossView:
    """What the loss keeps for its backward (an output's own storage under its key), which outputs it reads, and what
    it needs while it runs."""

    keeps: tuple[Keep, ...]
    reads: tuple[str, ...]
    cost: LossCost


def view_loss(traced: Trace, graph: ModelGraph, loss_function: LossFunction, make_target: MakeTarget) -> LossView:
    """Run the loss on fake outputs of the model.

    Raises:
        InputError: the loss has no gradient with respect to any output.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    kept: dict[int, Keep] = {}
    alive: list[Tensor] = []
    with mode, autocasting(None, traced.device):
        outputs = traced.fake_outputs(graph.batch_size, mode)
        with torch.no_grad():
            target = make_target(outputs)
        names = dict(zip([id(t) for t in tree_leaves(outputs) if isinstance(t, Tensor)], graph.outputs, strict=False))
        storages: dict[int, str] = {}
        leaves: dict[str, Tensor] = {}

        def leaf(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            fresh = value.detach().requires_grad_()
            if id(value) in names:
                storages[storage_key(fresh)] = f"storage/{graph.values[names[id(value)]].storage}"
            alive.append(fresh)
            if id(value) in names:
                leaves[names[id(value)]] = fresh
            return fresh

        def pack(tensor: Tensor) -> Tensor:
            alive.append(tensor)
            key = storage_key(tensor)
            name = storages.get(key, f"loss/{len(kept)}")
            kept.setdefault(key, Keep(name, int(tensor.untyped_storage().nbytes())))
            return tensor

        seen = tree_map(leaf, outputs)
        targets = [t for t in tree_leaves(target) if isinstance(t, Tensor)]
        around = {Category.INPUTS: [*alive, *targets]}
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with LiveTracker(around) as forward, hooks:
            loss = loss_function(seen, target)
        if not loss.requires_grad:
            raise InputError("the loss has no gradient with respect to any output of the model")
        with LiveTracker(around) as backward:
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    reads = tuple(name for name, gradient in zip(leaves, gradients, strict=True) if gradient is not None)
    cost = LossCost(
        target_bytes=sum(int(t.untyped_storage().nbytes()) for t in targets),
        forward_bytes=forward.growth_bytes,
        backward_bytes=backward.growth_bytes,
    )
    return LossView(keeps=tuple(kept.values()), reads=reads, cost=cost)


def _fake_trace(traced: Trace, mode: FakeTensorMode) -> Trace:
    """The same graph with fake parameters and buffers on the trace's device."""
    module = fx.GraphModule(traced.module, traced.module.graph)
    twins = Twins(mode, traced.device)
    for owner in module.modules():
        for table in (owner._parameters, owner._buffers):
            for name, tensor in list(table.items()):
                if tensor is not None:
                    table[name] = _frozen(twins.of(tensor))  # type: ignore[assignment]
        for name, value in list(vars(owner).items()):
            if isinstance(value, Tensor):
                setattr(owner, name, twins.of(value))
    for tensor in [*traced.module.parameters(), *traced.module.buffers()]:
        if not twins.has(tensor):  # in memory although no operator reads it
            module.register_buffer(f"unused_{len(module._buffers)}", twins.of(tensor).detach())
    return replace(traced, module=module, _graphs={})


def _frozen(tensor: Tensor) -> Tensor:
    return tensor.requires_grad_(False)
