"""Planned training in PyTorch Lightning: `Trainer(callbacks=[PlannedTraining(plan)])`.

    class Classifier(LightningModule):
        def configure_optimizers(self):
            return torch.optim.AdamW(session_of(self).parameters(), lr=1e-3)  # plan made with update="optimizer"
            return FusedSGD(session_of(self), lr=0.02)  # update mode fused

Lightning calls the module, the loss, the optimizer and the schedulers as ever. Works for `pytorch_lightning` and for
`lightning`, which has the same callbacks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medyate_planner.api import prepare
from medyate_planner.errors import InputError
from medyate_planner.importance.energy import Importance
from medyate_planner.integrations.steps import PlannedSteps
from medyate_planner.planning.plan import Plan
from medyate_planner.training.loop import MEASURED_STEP
from medyate_planner.training.measure import StepMeasurement
from medyate_planner.training.session import Session

try:
    from pytorch_lightning import Callback
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "medyate_planner.integrations.lightning needs pytorch-lightning: pip install 'medyate-planner[lightning]'"
    ) from error

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

LOGGED = "medyate/training_bytes"


class PlannedTraining(Callback):
    """Trains one module of a LightningModule by a plan, from the start of `fit` to its end.

    Channels are redrawn as the plan's sampling says, and the second step of every epoch is measured and logged as
    `medyate/training_bytes`, the largest of the epoch. Checkpoints hold the sampler's state.

    Args:
        planned: A plan, its file, or a session from `prepare` (which then decides about module and importance).
        module: Name of the attribute that is the planned model; "" is the LightningModule itself. By default the only
            child that fits the plan.
        importance: What draws go by.
        enforce: Measure every step, and stop training when one exceeds the budget.
    """

    def __init__(
        self,
        planned: Plan | Session | Path | str,
        *,
        module: str | None = None,
        importance: Importance | None = None,
        enforce: bool = False,
    ) -> None:
        self.enforce = enforce
        self._given = Plan.load(planned) if isinstance(planned, (str, Path)) else planned
        self._module, self._importance = module, importance
        self._steps: PlannedSteps | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._step = -1  # of the trainer, which is measured now
        if isinstance(self._given, Session) and (module is not None or importance is not None):
            raise InputError("PlannedTraining: module and importance go with a plan; the session has them already")

    @property
    def steps(self) -> PlannedSteps:
        """The steps of the fit that runs, or ran last.

        Raises:
            InputError: no fit has begun.
        """
        if self._steps is None:
            raise InputError("PlannedTraining has no session yet: it is prepared when `fit` begins, in `setup`")
        return self._steps

    @property
    def session(self) -> Session:
        """The session of the fit that runs, or ran last."""
        return self.steps.session

    @property
    def seen(self) -> StepMeasurement | None:
        """The last step that was measured."""
        return self.steps.seen

    @property
    def largest_training_bytes(self) -> int:
        """The most that any measured step held."""
        return self.steps.largest_training_bytes

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare the planned module, on the device that it will train on, before the optimizers are made."""
        if stage != "fit":
            return
        if isinstance(self._given, Session):
            session = self._given
            if all(module is not session.model for module in pl_module.modules()):
                raise InputError(
                    f"PlannedTraining: the session's model ({type(session.model).__name__}) is no part of "
                    f"{type(pl_module).__name__}"
                )
        else:
            chosen = _planned_module(pl_module, self._given, self._module).to(trainer.strategy.root_device)
            session = prepare(chosen, self._given, self._importance)
        self._steps = PlannedSteps(session, enforce=self.enforce)
        if not session.finished:
            session.attach().model.train()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the loop, and stand where a checkpoint was taken."""
        fused = self.session.mode.is_fused
        if fused and trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
            raise InputError("update mode fused clips norms layer by layer, not values; leave out the algorithm")
        self.steps.start(
            trainer.optimizers,
            accumulation=trainer.accumulate_grad_batches,
            processes=trainer.world_size,
            clip=None if trainer.gradient_clip_val is None else float(trainer.gradient_clip_val),
        )
        if self._loaded is not None:
            self.steps.load(self._loaded)
            self._loaded = None
        self.session.model.train()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Draw, and measure the epoch's second step."""
        number, waiting = divmod(batch_idx, trainer.accumulate_grad_batches)
        if waiting:
            return
        self.steps.draw(epoch=trainer.current_epoch, steps_done=trainer.global_step)
        last = math.inf
        if trainer.num_training_batches != math.inf:
            last = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches) - 1
        self._step = trainer.global_step
        measure = number == min(MEASURED_STEP, last)
        self.steps.open((trainer.current_epoch, number), trainer.optimizers, measure=measure)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        """Stop before anything is updated, if it comes to that."""
        self.steps.check()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Stop before the optimizer updates anything, if it comes to that."""
        self.steps.check(undone=not self.session.mode.is_fused)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what the step held, if it has ended and was measured."""
        if trainer.global_step == self._step:
            return  # gradients wait for more batches
        seen = self.steps.close()
        if seen is not None:
            held = torch.tensor(seen.training_bytes, dtype=torch.float64, device=self.session.anchor.device)
            pl_module.log(LOGGED, held, on_step=False, on_epoch=True, reduce_fx="max", batch_size=1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module back."""
        self.session.finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the module back."""
        if self._steps is not None and not self.session.finished:
            self.session.finish()

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoints."""
        return {} if self._steps is None else self._steps.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From Lightning's checkpoints; taken over when training starts."""
        self._loaded = state_dict or None


def session_of(pl_module: LightningModule) -> Session:
    """The session of a module that is being fitted, for its `configure_optimizers`.

    Raises:
        InputError: its trainer has no `PlannedTraining` callback.
    """
    callbacks: list[Any] = getattr(pl_module.trainer, "callbacks", [])
    for callback in callbacks:
        if isinstance(callback, PlannedTraining):
            return callback.session
    raise InputError("session_of: the trainer has no PlannedTraining callback; pass Trainer(callbacks=[…])")


def _planned_module(pl_module: LightningModule, plan: Plan, name: str | None) -> nn.Module:
    if name is not None:
        return pl_module.get_submodule(name)
    expected = plan.model.num_parameters
    children = dict(pl_module.named_children())
    fitting = [child for child in children if _num_parameters(children[child]) == expected]
    if len(fitting) == 1:
        return children[fitting[0]]
    if not fitting and _num_parameters(pl_module) == expected:
        return pl_module
    named = ", ".join(f"{child} ({_num_parameters(children[child]):,})" for child in children)
    raise InputError(
        f"PlannedTraining: expected one child of {type(pl_module).__name__} with the plan's {expected:,} parameters, "
        f"got {named or 'no children'}; pass module='NAME'"
    )


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
