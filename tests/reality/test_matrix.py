"""I1 to I5 and I8 on every network, update mode, optimizer, batch and type: bytes, gradients, what stays, resuming."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from channels import assert_gradient, mask_of, parameters_of, sliced
from matrix_networks import NETWORKS, batch_of, call, make, target_of
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from medyate_planner import InfeasibleBudgetError, Plan, plan, verify
from medyate_planner.api import open_session
from medyate_planner.graph import Layer
from medyate_planner.losses import named_loss
from medyate_planner.memory.mode import FUSED, UpdateMode
from medyate_planner.memory.model import Updates
from medyate_planner.memory.timeline import footprint
from medyate_planner.subject import Subject, _subject, subject_of
from medyate_planner.training.session import Session
from medyate_planner.training.slots import Slot

MODES = {
    "fused": FUSED,
    "sgd": UpdateMode(update="optimizer", optimizer="sgd"),
    "momentum": UpdateMode(update="optimizer", optimizer="momentum"),
    "adamw": UpdateMode(update="optimizer", optimizer="adamw"),
}
KINDS = {"float32": (torch.float32, None), "bfloat16": (torch.bfloat16, None), "autocast": (torch.float32, "bfloat16")}
INTERVALS = (0, 1, 1)  # of the three steps of a run
STOP = 2  # steps before the run is stopped, in the middle of an interval

pytestmark = pytest.mark.slow
all_batches = pytest.mark.parametrize("batch", [1, 8])
all_modes = pytest.mark.parametrize("mode", MODES)


@dataclass
class Case:
    """A network of one type, traced once, and what was worked out for it."""

    name: str
    dtype: torch.dtype
    traced: Subject
    autocast: str | None = None
    subjects: dict[tuple[int, str], Subject] = field(default_factory=dict)
    plans: dict[tuple[int, str], Plan] = field(default_factory=dict)
    references: dict[tuple[int, torch.dtype], tuple[Tensor, dict[str, Tensor]]] = field(default_factory=dict)

    def subject(self, batch: int, mode: str) -> Subject:
        if (batch, mode) not in self.subjects:
            made, traced = self.traced, self.traced.traced
            options: dict[str, Any] = {"norm": "frozen", "mode": MODES[mode]}
            self.subjects[batch, mode] = _subject(made.model, traced, traced.graph(batch), made.loss, "off", **options)
        return self.subjects[batch, mode]

    def plan(self, batch: int, mode: str) -> Plan:
        """A plan of a budget between what the head alone needs and what everything needs."""
        if (batch, mode) not in self.plans:
            subject = self.subject(batch, mode)
            graph = subject.graph
            whole = {layer.name: layer.channels for layer in graph.layers if layer.name not in graph.head}
            head, everything = (
                footprint(subject.memory, Updates(quotas=quotas, full=frozenset(graph.head))).training_bytes
                for quotas in ({}, whole)
            )
            sides = {"max_layers": 10, "gap_ratio": 0.05, "buy_norm_scales": len(graph.units) < 80}
            request = {**sides, "metric": "raw"}  # more channels of a norm than one, whose bfloat16 error is chance
            budget = head + (everything - head) // (8 if batch > 1 else 4)
            try:
                found = plan(subject, None, budget, request=request)
            except InfeasibleBudgetError as error:
                found = plan(subject, None, (error.minimum_bytes + everything) // 2, request=request)
            self.plans[batch, mode] = found
        return self.plans[batch, mode]

    def batch(self, size: int) -> tuple[Any, Tensor]:
        return batch_of(self.name, size, self.dtype), target_of(self.name, size)

    def reference(self, size: int, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs of the model itself in evaluation mode, and the gradients of all its parameters, by autograd."""
        if (size, dtype) not in self.references:
            inputs, target = self.batch(size)
            model = copy.deepcopy(self.traced.model).eval().requires_grad_().to(dtype)
            casts = self.autocast is not None and dtype == self.dtype
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=casts):
                outputs = call(model, tree_map(lambda x: x.to(dtype) if x.is_floating_point() else x, inputs))
                value = loss_of(self.name)(outputs, target)
            value.backward()
            gradients = {name: p.grad for name, p in parameters_of(model).items() if p.grad is not None}
            self.references[size, dtype] = logits(outputs).detach(), gradients
        return self.references[size, dtype]

    def true_gradient(self, size: int, name: str, part: Callable[[Tensor], Tensor]) -> Tensor:
        """A part of a gradient, in float64."""
        return part(self.reference(size, torch.float64)[1][name])


def loss_of(name: str) -> Callable[..., Tensor]:
    return named_loss(NETWORKS[name].loss).function


def logits(outputs: Any) -> Tensor:
    found = outputs if isinstance(outputs, Tensor) else outputs["logits"]
    assert isinstance(found, Tensor)
    return found


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((name, kind), marks=pytest.mark.assets if network.zoo else (), id=f"{name}, {kind}")
        for name, network in NETWORKS.items()
        for kind in KINDS
    ],
)
def case(request: pytest.FixtureRequest) -> Case:
    name, (dtype, autocast) = request.param[0], KINDS[request.param[1]]
    batch, loss = batch_of(name, 8, dtype), NETWORKS[name].loss
    return Case(name, dtype, subject_of(make(name, dtype), batch, loss=loss, autocast=autocast), autocast)


@pytest.fixture
def weights(case: Case) -> Iterator[dict[str, Tensor]]:
    """Everything the model holds, which is put back after the test."""
    before = {name: tensor.clone() for name, tensor in case.traced.model.state_dict().items()}
    yield before
    case.traced.model.load_state_dict(before)


@all_batches
@all_modes
def test_bytes_agree_in_three_ways_and_stay_within_the_budget(case: Case, batch: int, mode: str) -> None:
    decided = case.plan(batch, mode)
    result = verify(case.subject(batch, mode), decided)
    wrong = [category for category in result.categories if not category.agrees]
    assert not wrong
    measured = {category.name: category.measured_bytes for category in result.categories}
    assert 0 < measured["training"] <= decided.budget_bytes
    assert result.within_budget
    assert decided.predicted.live_peak_bytes == measured["live peak"]
    assert decided.predicted.live_peak_bound_bytes is not None
    assert decided.predicted.live_peak_bound_bytes >= measured["live peak"]
    assert decided.biases or any(not layer.head for layer in decided.layers)


@all_batches
@all_modes
def test_forward_is_bit_identical_and_gradients_are_the_full_models(case: Case, batch: int, mode: str) -> None:
    subject, decided = case.subject(batch, mode), case.plan(batch, mode)
    inputs, target = case.batch(batch)
    expected_outputs, _ = case.reference(batch, case.dtype)
    found: dict[str, Tensor] = {}

    def note(slot: Slot, weight: Tensor | None, bias: Tensor | None) -> None:
        for name, gradient in ((slot.layer.weight, weight), (slot.layer.bias, bias)):
            if gradient is not None:
                found[str(name)] = gradient.clone()

    with open_session(subject, decided) as session:
        drawn = session.resample(1)
        session.rule.tap = note
        outputs = call(session, inputs)
        assert torch.equal(logits(outputs), expected_outputs)
        subject.loss.function(outputs, target).backward()
        for name, parameter in session.named_parameters().items():
            assert parameter.grad is not None
            found[name] = parameter.grad
    trained = {layer.name: layer for layer in subject.graph.units if layer.name in decided.updates().layers}
    assert set(found) == trained_parameters(decided, trained)
    for name, gradient in found.items():
        layer = next(layer for layer in trained.values() if name in (layer.weight, layer.bias))
        channels = drawn.get(layer.name) if name == layer.weight else None
        part = partial(part_of, layer, channels)
        true = partial(case.true_gradient, batch, name, part)
        computed = None if case.autocast is None else torch.bfloat16
        assert_gradient(name, gradient, part(case.reference(batch, case.dtype)[1][name]), true, computed_in=computed)


def part_of(layer: Layer, channels: list[int] | None, whole: Tensor) -> Tensor:
    """The selected channels of a gradient, or all of it."""
    return whole if channels is None else sliced(layer, whole, channels)


def trained_parameters(decided: Plan, layers: Mapping[str, Any]) -> set[str]:
    """Names of the parameters of which a plan trains anything."""
    updates = decided.updates()
    weights = {layer.weight for name, layer in layers.items() if name in updates.quotas or name in updates.full}
    biased = {layer.bias for name, layer in layers.items() if name in updates.biases | updates.full}
    return weights | {name for name in biased if name}


@dataclass(frozen=True)
class Saved:
    """What a user saves to go on later."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Any]


def optimizer_for(session: Session, mode: str) -> torch.optim.Optimizer | None:
    parameters = session.parameters()
    if mode == "fused":
        assert not parameters
        return None
    if mode == "adamw":
        return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9 if mode == "momentum" else 0.0, weight_decay=0.01)


def run(
    case: Case, batch: int, mode: str, *, resume: Saved | None = None
) -> tuple[dict[str, Tensor], list[dict[str, list[int]]], Saved | None]:
    """Three steps, or those after a stop: the weights, the draws, and what was saved at the stop."""
    subject, decided = case.subject(batch, mode), case.plan(batch, mode)
    inputs, target = case.batch(batch)
    saved = None
    with open_session(subject, decided) as session:
        session.set_lr(0.05, weight_decay=0.01, clip=5.0)
        optimizer = optimizer_for(session, mode)
        first = 0 if resume is None else STOP
        draws = []
        if resume is not None:
            subject.model.load_state_dict(resume.weights)
            draws.append(session.resample(INTERVALS[first - 1]))
            if optimizer is not None:
                optimizer.load_state_dict(resume.optimizer)
        for step in range(first, len(INTERVALS)):
            if step == 0 or INTERVALS[step] != INTERVALS[step - 1]:
                draws.append(session.resample(INTERVALS[step]))
            subject.loss.function(call(session, inputs), target).backward()
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()
            if step == STOP - 1:
                saved = Saved(state_of(subject.model), copy.deepcopy(optimizer.state_dict()) if optimizer else {})
    return state_of(subject.model), draws, saved


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(("mode", "batch"), [("fused", 8), ("sgd", 1), ("momentum", 8), ("adamw", 1)])
def test_the_rest_stays_and_runs_repeat_and_resume(
    case: Case, batch: int, mode: str, weights: dict[str, Tensor]
) -> None:
    model = case.traced.model
    after, draws, saved = run(case, batch, mode)
    changed = {name: tensor != weights[name] for name, tensor in after.items()}
    for name, elements in allowed(case, batch, mode, draws).items():
        assert torch.isfinite(after[name]).all()
        assert not (changed[name] & ~elements).any(), name
    assert any(elements.any() for elements in changed.values())
    for resume in (None, saved):
        model.load_state_dict(weights)
        again, draws_again, _ = run(case, batch, mode, resume=resume)
        assert draws_again == (draws if resume is None else draws[-1:])
        assert all(torch.equal(tensor, after[name]) for name, tensor in again.items())


def allowed(case: Case, batch: int, mode: str, draws: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Where anything may have changed, for every parameter and buffer of the model."""
    updates, by_name = case.plan(batch, mode).updates(), case.subject(batch, mode).graph.layer_by_name
    state = case.traced.model.state_dict(keep_vars=True)
    by_tensor = {id(tensor): torch.zeros(tensor.shape, dtype=torch.bool) for tensor in state.values()}
    parameters = parameters_of(case.traced.model)
    for name in updates.layers:
        layer = by_name[name]
        if name in updates.full:
            by_tensor[id(parameters[layer.weight])][:] = True
        if layer.bias and name in updates.biases | updates.full:
            by_tensor[id(parameters[layer.bias])][:] = True
        for drawn in draws:
            by_tensor[id(parameters[layer.weight])] |= mask_of(layer, drawn.get(name, []))
    return {name: by_tensor[id(tensor)] for name, tensor in state.items()}
