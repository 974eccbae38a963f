"""Straight code computes what its graph module does; backward functions refuse what they can not do."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from medyate_planner.training import straight as module
from medyate_planner.training.functions import backward_once, direct
from medyate_planner.training.passing import ClampSite, PassingSite
from medyate_planner.training.straight import called_directly, straight

_aten = torch.ops.aten
X = torch.linspace(-3, 3, 32).view(2, 4, 4)
IMAGE = torch.linspace(-3, 3, 128).view(2, 4, 4, 4)
_VECTOR, _KERNEL = torch.linspace(0.5, 1, 4), torch.linspace(-1, 1, 48)
ARGUMENTS: dict[Any, tuple[Any, ...]] = {
    _aten.conv1d.default: (X, _KERNEL.view(4, 4, 3), _VECTOR, [2], [1], [1], 1),
    _aten.conv2d.default: (IMAGE, _KERNEL[:36].view(4, 1, 3, 3), _VECTOR, [1, 2], [1, 1], [1, 1], 4),
    _aten.conv3d.default: (IMAGE.unsqueeze(2), _KERNEL[:16].view(4, 4, 1, 1, 1), None, [1, 1, 1]),
    _aten.linear.default: (X, _KERNEL.view(12, 4), None),
    _aten.addmm.default: (_VECTOR, X[0], X[1]),
    _aten.matmul.default: (X, X),
    _aten.hardtanh.default: (X, -1.0, 2.0),
    _aten.hardtanh_.default: (X, 0.0, 1.5),
    _aten.softmax.int: (X, -1),
    _aten.batch_norm.default: (IMAGE, _VECTOR, None, _VECTOR, _VECTOR, False, 0.1, 1e-3, True),
    _aten.layer_norm.default: (X, [4], _VECTOR, None, 1e-3),
    _aten.max_pool2d.default: (IMAGE, [3, 3], [2, 2], [1, 1], [1, 1], True),
    _aten.adaptive_avg_pool2d.default: (IMAGE, [2, 3]),
    _aten.mean.dim: (IMAGE, [2, 3], True),
    _aten.add.Tensor: (X, 0.5),
    _aten.mul.Tensor: (X, X),
    _aten.cat.default: ([X, X], 1),
}


@pytest.mark.parametrize("operator", module._FUNCTIONS, ids=str)
def test_a_function_is_its_operator(operator: Any) -> None:
    arguments = ARGUMENTS.get(operator, (X,))
    mine, theirs = ([a.clone() if isinstance(a, Tensor) else a for a in arguments] for _ in range(2))
    function = called_directly(operator)
    assert function is not operator
    assert torch.equal(function(*mine), operator(*theirs))
    for a, b in zip(mine, theirs, strict=True):
        assert not isinstance(a, Tensor) or torch.equal(a, b)  # in place, or not


def test_other_operators_stay() -> None:
    assert called_directly(_aten.native_dropout.default) is _aten.native_dropout.default


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)))
        self.register_buffer("shift", torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(x)
        return torch.ops.aten.add.Tensor(y, self.shift)


def test_straight_code_gives_the_same_bits_and_the_same_gradients() -> None:
    net = _Net()
    traced = torch.export.export(net, (IMAGE,), strict=False).module(check_guards=False)
    assert isinstance(traced, fx.GraphModule)
    before = traced.code
    run = straight(traced)
    found, expected = run(IMAGE), net(IMAGE)
    assert torch.equal(found, expected)
    assert traced.code == before
    mine = torch.autograd.grad(found.sum(), list(net.parameters()))
    theirs = torch.autograd.grad(expected.sum(), list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_straight_code_sees_weights_that_change() -> None:
    net = _Net()
    run = straight(fx.symbolic_trace(net))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    assert torch.equal(run(IMAGE), net(IMAGE))


def test_straight_code_names_its_nodes() -> None:
    """`Places` tells from the line that runs which operator it is."""
    traced = fx.symbolic_trace(_Net())
    run: Any = straight(traced)
    lines = [line.strip() for line in inspect.getsource(run.func).splitlines()]
    for node in traced.graph.nodes:
        if node.op in ("call_function", "call_module"):
            assert any(line.startswith(f"{node.name} = ") for line in lines), node.name


def test_straight_code_calls_sites_past_their_hooks() -> None:
    holder = nn.Module()
    site: PassingSite = ClampSite(_aten.hardtanh.default, (0.0, 6.0), False)
    site.register_forward_hook(lambda *_: pytest.fail("called through nn.Module"))
    holder.add_module("site", site)
    graph = fx.Graph()
    graph.output(graph.call_module("site", (graph.placeholder("x"),)))
    x = X.clone().requires_grad_()
    straight(fx.GraphModule(holder, graph))(x).sum().backward()
    assert torch.equal(x.grad, ((x > 0) & (x < 6)).float())


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @backward_once
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return 2 * ctx.saved_tensors[0] * gradient


def test_backward_once_gives_the_gradient_and_refuses_a_second_derivative() -> None:
    x = torch.tensor([3.0], requires_grad=True)
    (once,) = torch.autograd.grad(direct(_Square)(x), x)
    assert once.item() == 6.0
    top = torch.ones(1, requires_grad=True)
    (first,) = torch.autograd.grad(direct(_Square)(x), x, top, create_graph=True)
    assert first.item() == 6.0
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.backward()
