"""torch.compile of a session: the same bytes and values, or a plain reason and all as before."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor, nn

from medyate_planner.api import plan, prepare
from medyate_planner.training.compiled import compile_session
from medyate_planner.training.session import Session


def network(first: type[nn.Module], second: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), first(), nn.Conv2d(8, 8, 1), second(), nn.Flatten(), nn.Linear(392, 4))


def train(session: Session, x: Tensor, steps: int = 3) -> list[Tensor]:
    session.set_lr(0.05)
    for _ in range(steps):
        nn.functional.cross_entropy(session(x), torch.arange(4)).backward()
    return [p.detach().clone() for p in session.model.parameters()]


@pytest.mark.parametrize(
    ("backend", "activations", "works"),
    [
        ("eager", (nn.SiLU, nn.SiLU), True), ("eager", (nn.ReLU6, nn.SiLU), True),
        ("eager", (nn.SiLU, nn.ReLU6), False),
        ("inductor", (nn.SiLU, nn.SiLU), True), ("inductor", (nn.ReLU6, nn.SiLU), True),
    ],
)  # fmt: skip
def test_compiled_or_told_why_not(backend: str, activations: tuple[type[nn.Module], ...], works: bool) -> None:
    """A mask that no convolution takes in is packed by numpy, out of sight of what is compiled: bytes would differ."""
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("inductor needs a C++ compiler")
    x = torch.randn(4, 3, 9, 9)
    made = plan(network(*activations), x, budget="30kB")
    with prepare(network(*activations), made) as session:
        expected = train(session, x)
    model = network(*activations)
    before = [p.detach().clone() for p in model.parameters()]
    torch._dynamo.reset()
    with prepare(model, made) as session:
        plain = session.lean
        reason = compile_session(session, (x,), backend=backend)
        assert all(map(torch.equal, before, model.parameters()))  # the trial changed nothing
        if works:
            assert reason is None
            assert session.lean is not plain
        else:
            assert reason is not None
            assert f"backend {backend}" in reason
            assert "running uncompiled" in reason
            assert "\n" not in reason
            assert session.lean is plain
        trained = train(session, x)
    for mine, theirs in zip(trained, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
