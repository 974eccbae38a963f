"""What happens around a step in each update mode: the learning rate before, the optimizer after, its state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from medyate_planner.errors import InputError
from medyate_planner.training.compact import CHANNELS
from medyate_planner.training.following import state_tensors
from medyate_planner.training.session import Session

if TYPE_CHECKING:
    from medyate_planner.training.loop import Recipe


class Stepper(Protocol):
    """Steps a session's weights. A loop calls `begin` before the first forward of a step and `finish` after its last
    backward."""

    def begin(self, lr: float) -> None:
        """A step of this size begins."""

    def finish(self) -> None:
        """All gradients are there: clip them, step, free them."""

    def tensors(self) -> list[Tensor]:
        """The optimizer's state, as it is in memory."""

    def state(self) -> dict[str, Tensor]:
        """The optimizer's state by name, for a checkpoint."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave, for the channels that are selected now.

        Raises:
            InputError: it is of other parameters.
        """


def stepper_for(session: Session, recipe: Recipe) -> Stepper:
    """Plain SGD during backward in mode `fused`, else the torch optimizer of the session's mode."""
    if session.mode.is_fused:
        return FusedStepper(session, weight_decay=recipe.weight_decay, clip=recipe.clip)
    optimizer = make_optimizer(
        session.parameters(), session.mode.optimizer, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    return OptimizerStepper(session, optimizer, clip=recipe.clip)


def trial_stepper(session: Session) -> FusedStepper | OptimizerStepper:
    """For a step that is only measured: what the session was told in mode `fused`, else small steps."""
    if session.mode.is_fused:
        return FusedStepper(session, weight_decay=session.rule.weight_decay, clip=session.rule.clip)
    optimizer = make_optimizer(session.parameters(), session.mode.optimizer, lr=1e-3)
    return OptimizerStepper(session, optimizer, clip=5.0)


def make_optimizer(
    parameters: Iterable[nn.Parameter], name: str, *, lr: float = 0.0, momentum: float = 0.9, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """sgd, momentum, adam or adamw; one parameter after the other, so that what they need at a time is small."""
    given = list(parameters)
    if name in ("sgd", "momentum"):
        used = momentum if name == "momentum" else 0.0
        return torch.optim.SGD(given, lr=lr, momentum=used, weight_decay=weight_decay, foreach=False)
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind(given, lr=lr, weight_decay=weight_decay, foreach=False)


class FusedStepper:
    """Mode `fused`: everything happens during backward; gradients are clipped layer by layer."""

    def __init__(self, session: Session, *, weight_decay: float, clip: float | None) -> None:
        self._session = session
        self._settings = {"weight_decay": weight_decay, "clip": clip}

    def begin(self, lr: float) -> None:
        """A step of this size begins."""
        self._session.set_lr(lr, **self._settings)

    def finish(self) -> None:
        """Nothing is left to do."""

    @property
    def makes_state(self) -> bool:
        """False."""
        return False

    def tensors(self) -> list[Tensor]:
        """None."""
        return []

    def state(self) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Raises `InputError` if there is a state, which is then another mode's."""
        if state:
            raise InputError("optimizer state: update mode fused has none; resume with the plan that the run was of")


class OptimizerStepper:
    """Mode `optimizer`: gradients are clipped over all parameters together."""

    def __init__(self, session: Session, optimizer: torch.optim.Optimizer, *, clip: float | None) -> None:
        self.optimizer, self._session, self._clip = optimizer, session, clip

    def begin(self, lr: float) -> None:
        """A step of this size begins."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def finish(self) -> None:
        """Clip, step, free the gradients."""
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self._session.parameters(), self._clip, foreach=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def makes_state(self) -> bool:
        """Whether the first step has less in memory than the others."""
        return self._session.mode.has_state

    def tensors(self) -> list[Tensor]:
        """The optimizer's state, as it is in memory."""
        return state_tensors(self.optimizer)

    def state(self) -> dict[str, Tensor]:
        """Tensors by `PARAMETER/KEY`, on the host; with the channels that they belong to (redrawn since, perhaps)."""
        names = {id(p): name for name, p in self._session.named_parameters().items()}
        found: dict[str, Tensor] = {}
        for parameter, entry in self.optimizer.state.items():
            for key, value in entry.items():
                kept = torch.tensor(value, dtype=torch.int64) if key == CHANNELS else value
                if isinstance(kept, Tensor):
                    found[f"{names[id(parameter)]}/{key}"] = kept.detach().cpu().clone()
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave, for the channels that are selected now."""
        parameters = self._session.named_parameters()
        entries: dict[Tensor, dict[str, Any]] = {}
        for name, value in state.items():
            owner, _, key = name.rpartition("/")
            parameter = parameters.get(owner)
            if parameter is not None and key == CHANNELS:
                entries.setdefault(parameter, {})[key] = tuple(value.tolist())
                continue
            if parameter is None or (value.numel() > 1 and value.shape != parameter.shape):
                raise InputError(f"optimizer state: {name} of shape {tuple(value.shape)} does not fit the plan")
            placed = value.clone() if key == "step" else value.to(parameter.device, copy=True)
            entries.setdefault(parameter, {})[key] = placed
        self.optimizer.state.clear()
        self.optimizer.state.update(entries)
