"""Update mode `fused` behind the face of a torch optimizer, for loops and learning rate schedules that want one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch

from medyate_planner.errors import InputError
from medyate_planner.training.session import Session


class FusedSGD(torch.optim.Optimizer):
    """Tells a session in update mode `fused` its learning rate, weight decay and clipping before every forward.

    The weights are updated during backward, so `step` does nothing and there is no state. Whatever changes the `lr` of
    a parameter group can drive it: every scheduler of torch and of the frameworks. `clip` limits the gradient's norm
    layer by layer; None leaves the session's own.

    Raises:
        InputError: the session's update mode is `optimizer`.
    """

    def __init__(self, session: Session, lr: float, *, weight_decay: float = 0.0, clip: float | None = None) -> None:
        if not session.mode.is_fused:
            raise InputError(
                "FusedSGD: the plan's update mode is optimizer, so a torch optimizer steps its parameters: "
                "torch.optim.SGD(session.parameters(), lr=…); or plan again with update fused"
            )
        self.session = session
        super().__init__([session.anchor], {"lr": lr, "weight_decay": weight_decay, "clip": clip})
        session.before_forward = self.tell

    def tell(self) -> None:
        """Hand the group's settings to the session."""
        group = self.param_groups[0]
        self.session.set_lr(float(group["lr"]), weight_decay=float(group["weight_decay"]), clip=group["clip"])

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run the closure, if there is one, and return its loss."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()


def bare(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside a framework's wrappers."""
    while not isinstance(optimizer, FusedSGD) and isinstance(
        getattr(optimizer, "optimizer", None), torch.optim.Optimizer
    ):
        optimizer = optimizer.optimizer
    return cast(torch.optim.Optimizer, optimizer)
