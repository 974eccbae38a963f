"""`FusedSGD`: a torch optimizer as schedulers and checkpoints see it, that only tells a session its settings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from medyate_planner import InputError, Plan, plan, prepare
from medyate_planner.training.facade import FusedSGD, bare

X, Y = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 3
RATES = (0.5, 0.25, 0.0, 1.0)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def decided(**options: str) -> Plan:
    return plan(net(), torch.zeros(4, 6), budget="20kB", strategy="full", **options)


def by_hand(made: Plan, *, weight_decay: float, clip: float | None) -> dict[str, Tensor]:
    """Training with `set_lr`."""
    with prepare(net(), made) as session:
        for rate in RATES:
            session.set_lr(0.2 * rate, weight_decay=weight_decay, clip=clip)
            functional.cross_entropy(session(X), Y).backward()
        return session.model.state_dict()


def test_a_scheduler_drives_the_session() -> None:
    made = decided()
    with prepare(net(), made) as session:
        optimizer = FusedSGD(session, lr=0.2, weight_decay=0.1, clip=0.01)
        schedule = LambdaLR(optimizer, lambda step: RATES[step % len(RATES)])
        for _ in RATES:
            optimizer.zero_grad()
            optimizer.step(lambda: functional.cross_entropy(session(X), Y).backward())
            schedule.step()
        found = session.model.state_dict()
    expected = by_hand(made, weight_decay=0.1, clip=0.01)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(found["0.weight"], by_hand(made, weight_decay=0.1, clip=None)["0.weight"])


def test_without_a_clip_of_its_own_the_sessions_stays() -> None:
    with prepare(net(), decided()) as session:
        session.set_lr(0.0, clip=0.5)
        FusedSGD(session, lr=0.2)
        session(X)
        assert (session.rule.lr, session.rule.weight_decay, session.rule.clip) == (0.2, 0.0, 0.5)


def test_its_state_is_its_settings() -> None:
    with prepare(net(), decided()) as session:
        saved = FusedSGD(session, lr=0.3, weight_decay=0.1, clip=2.0).state_dict()
        assert saved["state"] == {}
        again = FusedSGD(session, lr=9.0)
        again.load_state_dict(saved)
        session(X)
        assert (session.rule.lr, session.rule.weight_decay, session.rule.clip) == (0.3, 0.1, 2.0)
        assert again.step() is None
        assert again.step(lambda: 5) == 5


def test_another_update_mode_is_refused() -> None:
    with (
        prepare(net(), decided(update="optimizer", optimizer="sgd")) as session,
        pytest.raises(InputError, match="update mode is optimizer"),
    ):
        FusedSGD(session, lr=0.1)


def test_bare_looks_through_wrappers() -> None:
    inner = torch.optim.SGD(net().parameters(), lr=0.1)

    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    assert bare(Wrapper(Wrapper(inner))) is inner
    assert bare(inner) is inner
