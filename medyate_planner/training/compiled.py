"""torch.compile of a session's lean graph, where it keeps the same bytes; elsewhere a plain reason, and all as before.

Limits (torch 2.13): backends that trace backward ahead of time (inductor, aot_eager) run the lean operators' backward
while they trace it, and would apply its update once and never again; packed masks are out of sight of what is compiled.
Two trial steps find that out, whatever the backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from medyate_planner.training.measure import StepMeasurement, StepMeter
from medyate_planner.training.session import Session


def compile_session(
    session: Session, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, *, backend: str = "inductor"
) -> str | None:
    """Compile the lean graph for inputs like these, if a trial step keeps the same bytes as without.

    The trial leaves weights and buffers as they are. A session whose quotas change compiles no more than the first.

    Returns:
        None if the session runs compiled from now on; else why it does not, in one line.
    """
    given = dict(kwargs or {})
    plain = session.lean
    expected = _trial(session, args, given)
    session.lean = torch.compile(plain, backend=backend)  # type: ignore[assignment]
    try:
        reason = expected.difference(_trial(session, args, given))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if reason is None:
        return None
    session.lean = plain
    return f"torch.compile with backend {backend} does not suit the lean operators: {reason}; running uncompiled"


@dataclass(frozen=True)
class _Trial:
    """What two steps of different size kept, and the weights or gradients that came of them."""

    saved_bytes: int
    training_bytes: int
    results: list[Tensor]

    def difference(self, other: _Trial) -> str | None:
        for name in ("saved_bytes", "training_bytes"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name} are {theirs:,} where the plan has {mine:,}"
        if not all(
            torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(self.results, other.results, strict=True)
        ):
            return "the weights after two steps differ"
        return None


def _trial(session: Session, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Trial:
    """Two steps, after which everything is as before."""
    tensors = [*session.model.parameters(), *session.model.buffers()]
    before = [(tensor, tensor.detach().clone()) for tensor in tensors]
    rule, state = session.rule, torch.get_rng_state()
    lr, boost, rule.boost = rule.lr, rule.boost, None
    try:
        for rule.lr in (1e-3, 2e-3):
            measured = _step(session, args, kwargs)
        made = [p.grad for p in session.parameters() if p.grad is not None] or session.model.parameters()
        results = [tensor.detach().clone() for tensor in made]
        return _Trial(measured.saved_bytes, measured.training_bytes, results)
    finally:
        rule.lr, rule.boost = lr, boost
        torch.set_rng_state(state)
        for parameter in session.parameters():
            parameter.grad = None
        with torch.no_grad():
            for tensor, original in before:
                tensor.copy_(original)


def _step(session: Session, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepMeasurement:
    inputs = [x for x in tree_leaves([args, kwargs]) if isinstance(x, Tensor)]
    with StepMeter(session, inputs, live=False) as meter:
        outputs = session.run(args, kwargs)
        meter.enter_phase("loss")
        reached = [x for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.requires_grad]
        loss = torch.stack([x.square().mean() for x in reached]).sum()
        del outputs, reached
        meter.enter_phase("backward")
        loss.backward()  # type: ignore[no-untyped-call]
    return meter.measurement(loss=None)
