"""What a plan leaves alone, element by element, for the tests of training in frameworks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from channels import mask_of
from torch import Tensor, nn

from medyate_planner.api import planned_draws
from medyate_planner.graph import ModelGraph
from medyate_planner.importance.energy import Importance
from medyate_planner.planning.plan import Plan


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Bit for bit."""
    assert list(found) == list(expected)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def assert_no_instruments(model: nn.Module) -> None:
    """No hooks are left on the model, on what autograd saves, or in the place of its forward."""
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not {"forward", "accepts_loss_kwargs"} & set(vars(model))
    result: Any = torch.ones(3, requires_grad=True).square()
    result.grad_fn._raw_saved_self.register_hooks(lambda x: x, lambda x: x)  # refused, if there are hooks already


def assert_only_planned_changed(
    graph: ModelGraph,
    plan: Plan,
    intervals: Iterable[int],
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    importance: Importance | None = None,
) -> None:
    """Of layers trained by channels something has changed, and only in channels drawn in these intervals; the head
    and the planned biases may have; nothing else has."""
    draw = planned_draws(plan, importance)
    drawn: dict[str, set[int]] = {}
    for interval in intervals:
        for name, channels in draw(interval).items():
            drawn.setdefault(name, set()).update(channels)
    heads = {layer.name for layer in plan.layers if layer.head}
    free = {graph.layer_by_name[name].weight for name in heads}
    free |= {str(graph.layer_by_name[name].bias) for name in heads | set(plan.biases)}
    allowed = {graph.layer_by_name[n].weight: mask_of(graph.layer_by_name[n], sorted(c)) for n, c in drawn.items()}
    changed = {name: before[name] != after[name] for name in before}
    assert set(allowed)
    for name, mask in allowed.items():
        assert changed[name].any(), name
        assert not (changed[name] & ~mask).any(), name
    assert [name for name in before if changed[name].any() and name not in free | set(allowed)] == []
