"""I3 and I4: bit-identical forward, the full model's gradients on the selected channels, nothing else changed."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from networks import ZOO, all_networks, subject
from torch import Tensor, nn
from torch.nn import functional

from medyate_planner import Plan, plan
from medyate_planner.api import open_session
from medyate_planner.planning.plan import PlannedLayer
from medyate_planner.training.slots import Slot

WORST_RELATIVE_ERROR = 1e-5
PRE_TRAINED = (*ZOO, "efficientnet-lite0")


def sliced(slot: Slot, gradient: Tensor) -> Tensor:
    """The part of a full weight gradient that a slot trains; written from the definition of a channel."""
    if slot.index is None:
        return gradient
    channels = slot.index.tolist()
    layer = slot.layer
    per_group, rows = layer.channels // layer.groups, layer.out_channels // layer.groups
    if layer.groups == 1:
        return gradient[:, channels]
    parts = [gradient[c // per_group * rows : (c // per_group + 1) * rows, c % per_group] for c in channels]
    stacked = torch.cat(parts)
    return stacked.unsqueeze(1) if layer.kind == "depthwise" else stacked


def full_gradients(model: nn.Module, x: Tensor, target: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Output and gradients of the whole model by PyTorch's autograd."""
    reference = copy.deepcopy(model).eval()
    for parameter in reference.parameters():
        parameter.requires_grad_()
    output = reference(x)
    functional.cross_entropy(output, target).backward()
    return output.detach(), {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}


def everything(made: object, share: float) -> Plan:
    """A plan that updates part of every layer, and every bias."""
    base = plan(made, budget=10**12, strategy="full")  # type: ignore[arg-type]
    layers = tuple(
        layer if layer.head else PlannedLayer(**{**layer.model_dump(), "quota": max(1, int(layer.channels * share))})
        for layer in base.layers
    )
    return base.model_copy(update={"layers": layers})


@all_networks
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_forward_is_bit_identical_and_gradients_are_the_full_models(network: str, share: float) -> None:
    made = subject(network, 8)
    decided = everything(made, share)
    (x,), _ = made.traced.examples(8, seed=1)
    target = torch.arange(8) % 10
    with _random_head(made.model, made.graph.layer_by_name[made.graph.head[0]].weight):
        expected_output, expected = full_gradients(made.model, x, target)
        errors: dict[str, float] = {}

        def compare(slot: Slot, weight: Tensor | None, bias: Tensor | None) -> None:
            layer = slot.layer
            if weight is not None:
                errors[layer.weight] = _relative(weight, sliced(slot, expected[layer.weight]))
            if bias is not None and layer.bias is not None:
                errors[layer.bias] = _relative(bias, expected[layer.bias])

        with open_session(made, decided) as session:
            session.resample(3)
            session.rule.tap = compare
            output = session(x)
            assert torch.equal(output, expected_output)
            functional.cross_entropy(output, target).backward()
    assert sum(1 for g in expected.values() if g.norm() > 0) > 0.9 * len(expected)
    assert len(errors) == len(decided.layers) + len(decided.biases) + sum(1 for la in decided.layers if la.head)
    assert all(error <= WORST_RELATIVE_ERROR for error in errors.values()), max(errors.items(), key=lambda e: e[1])


@all_networks
def test_nothing_but_the_selection_changes(network: str) -> None:
    made = subject(network, 8)
    decided = everything(made, 0.3).model_copy(update={"biases": everything(made, 0.3).biases[::2]})
    (x,), _ = made.traced.examples(8, seed=2)
    target = torch.arange(8) % 10
    head = made.graph.layer_by_name[made.graph.head[0]]
    with _random_head(made.model, head.weight):
        before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
        required = [p.requires_grad for p in made.model.parameters()]
        selections: dict[str, set[int]] = {}
        with open_session(made, decided) as session:
            for epoch in range(2):
                for name, channels in session.resample(epoch).items():
                    selections.setdefault(name, set()).update(channels)
                session.set_lr(0.05, clip=5.0)
                functional.cross_entropy(session(x), target).backward()
        assert [p.requires_grad for p in made.model.parameters()] == required
        changed = {n: t != before[n] for n, t in made.model.state_dict().items() if not torch.equal(t, before[n])}
        for name, tensor in before.items():
            made.model.state_dict()[name].copy_(tensor)
    trained = {made.graph.layer_by_name[n].bias for n in decided.biases} | {head.weight, head.bias}
    weights = {layer.weight: layer for layer in made.graph.layers}
    for name, where in changed.items():
        if name in trained:
            continue
        layer = weights[name]
        rows = layer.out_channels // layer.groups
        allowed = torch.zeros_like(where)
        for c in selections[layer.name]:
            if layer.kind == "depthwise":
                allowed[c * rows : (c + 1) * rows] = True
            else:
                allowed[:, c] = True
        assert not (where & ~allowed).any(), name
    selected = {layer.weight for layer in made.graph.layers if layer.name in selections}
    if network in PRE_TRAINED:  # with random weights the gradients of early layers round away
        assert selected <= set(changed)
    assert selected & set(changed)


class _random_head:
    """A head with random weights for the time of a test: through a fresh one hardly any gradient flows."""

    def __init__(self, model: nn.Module, weight: str) -> None:
        self.parameter = dict(model.named_parameters())[weight]

    def __enter__(self) -> None:
        self.before = self.parameter.detach().clone()
        noise = torch.randn(self.parameter.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            self.parameter.copy_(noise * 0.3)

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            self.parameter.copy_(self.before)


def _relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert torch.isfinite(found).all()
    norm = float(expected.norm())
    if norm == 0:  # a dead channel: both must say so
        return float(found.abs().max())
    return float((found - expected).norm()) / norm
