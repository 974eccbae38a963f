"""What a framework's callbacks do to a session, whatever the framework: draws, measured steps, state, checks.

A framework calls the model, the loss, the optimizer and the scheduler itself. Its callback says here when training, a
step and an optimizer step begin and end.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from medyate_planner.errors import InputError, MedyateWarning
from medyate_planner.planning.plan import Plan
from medyate_planner.training.facade import FusedSGD, bare
from medyate_planner.training.following import state_tensors
from medyate_planner.training.guard import Guard
from medyate_planner.training.measure import StepMeasurement, StepMeter
from medyate_planner.training.session import Session


class PlannedSteps:
    """The steps of an attached session in somebody else's loop.

    Measured is what autograd keeps in the whole step, by whichever module or loss, the session's gradients, indices and
    copies, and all state of the optimizers. With `enforce` every step is measured, and the first above the budget
    stops training: before it updates anything, if what is kept at one of the calls of `check` is too much already.

    When the session ends, whatever was put on a step that was not finished is taken off.

    Raises:
        InputError: the session was not made by `prepare`, or `enforce` is asked for a budget of scope `peak`.
    """

    def __init__(self, session: Session, *, enforce: bool) -> None:
        if session.plan is None:
            raise InputError("the session has no plan; make it with medyate_planner.prepare(model, plan)")
        self.session, self.enforce = session, enforce
        self.plan: Plan = session.plan
        self.interval: int | None = None
        self.seen: StepMeasurement | None = None  # the last that was measured
        self.largest_training_bytes = 0
        self._guard = Guard.of(self.plan)
        self._meter: StepMeter | None = None
        self.undo = ExitStack()  # of what was put on the step that runs
        self._where = (0, 0)
        self._passes = 0
        session.closing.callback(self.abandon)
        if enforce and self._guard.live:
            raise InputError(
                "enforce: a budget of scope peak can not be watched from inside a framework's loop, whose own tensors "
                "would count; use `medyate train --enforce`, or plan with scope training"
            )

    def start(self, optimizers: Sequence[Any], *, accumulation: int, processes: int, clip: float | None) -> None:
        """Training begins, with everything in its place that a checkpoint had.

        `clip`: the framework's limit for gradient norms; in update mode `fused` it holds layer by layer, unless the
        `FusedSGD` has its own.

        Raises:
            InputError: the optimizers are not the session's, or the loop is not one that was planned for.
        """
        session, found = self.session, [bare(optimizer) for optimizer in optimizers]
        if session.finished:
            raise InputError("the session has ended; call medyate_planner.prepare again, and make a new callback")
        if processes > 1:
            raise InputError(
                f"planned training runs on one device, got {processes}: gradients of a session are not exchanged"
            )
        if accumulation > session.mode.accumulation:
            raise InputError(
                f"gradient accumulation over {accumulation} batches: the plan was made for "
                f"{session.mode.accumulation}, and gradients that wait would break its budget; plan again with "
                f"accumulation={accumulation}"
            )
        self._check_place()
        self._check_optimizers(found)
        if session.mode.is_fused and clip:
            session.set_lr(session.rule.lr, clip=clip)
        session.attach()

    def _check_place(self) -> None:
        model, anchor = self.session.model, self.session.anchor
        own = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
        if own.device != anchor.device or str(own.dtype) != f"torch.{self.plan.dtype}":
            raise InputError(
                f"the model is on {own.device} as {str(own.dtype).removeprefix('torch.')}, but was prepared on "
                f"{anchor.device} by a plan for {self.plan.dtype}; move it first, then prepare it"
            )

    def _check_optimizers(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        session = self.session
        if session.mode.is_fused:
            if not any(isinstance(found, FusedSGD) and found.session is session for found in optimizers):
                raise InputError(
                    "the plan's update mode is fused: give the loop FusedSGD(session, lr=…) of "
                    "medyate_planner.integrations as its optimizer"
                )
            return
        stepped = {id(p) for found in optimizers for group in found.param_groups for p in group["params"]}
        missing = [name for name, p in session.named_parameters().items() if id(p) not in stepped]
        if missing:
            raise InputError(
                f"the optimizer lacks {len(missing)} of the session's parameters ({missing[0]}, …); give the loop a "
                "torch optimizer of session.parameters()"
            )

    def draw(self, *, epoch: int, steps_done: int) -> None:
        """Redraw the channels if a new interval has begun."""
        every = self.plan.sampling.interval_steps
        number = epoch if every is None else steps_done // every
        if number != self.interval:
            self.session.resample(number)
            self.interval = number

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs beside weights and optimizer: integers and tensors."""
        return {"interval": self.interval, "sampler": self.session.sampler_state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave; the model's weights must be those of that moment.

        Raises:
            InputError: it is of another plan.
        """
        self.session.load_sampler_state(state["sampler"])
        self.interval = state["interval"]
        if self.interval is not None:
            self.session.resample(self.interval)

    def open(self, where: tuple[int, int], optimizers: Sequence[Any], *, measure: bool) -> None:
        """A step begins: its epoch, and its number in there; it is measured if asked, or enforced."""
        self.abandon()
        if not (measure or self.enforce):
            return
        state = [tensor for optimizer in optimizers for tensor in state_tensors(bare(optimizer))]
        self._where, self._passes = where, 0
        self._meter = StepMeter(self.session, (), live=False, state=state)
        self.undo.enter_context(self._meter)
        model = self.session.model
        self.undo.callback(model.register_forward_pre_hook(self._before_forward).remove)
        self.undo.callback(model.register_forward_hook(self._after_forward).remove)

    def check(self, *, undone: bool | None = None) -> None:
        """Raise `BudgetExceededError` if the open step is enforced and holds more than the budget by now.

        `undone`: nothing was updated in it yet; by default, that this is its first pass. Not for hooks of autograd,
        where the instruments could not be taken off.
        """
        if self._meter is not None and self.enforce:
            seen = self._meter.measurement(loss=None)
            try:
                self._guard.check(seen, self._where, undone=self._passes == 1 if undone is None else undone)
            except BaseException:
                self._note(seen)
                self.abandon()
                raise

    def close(self) -> StepMeasurement | None:
        """The step has ended; what it held, if it was measured.

        Raises:
            BudgetExceededError: with `enforce`.
        """
        if self._meter is None:
            self.abandon()
            return None
        self.check(undone=False)
        seen = self._meter.measurement(loss=None)
        self.abandon()
        self._note(seen)
        if not self._guard.live and self._guard.used_bytes(seen) > self._guard.budget_bytes:
            warnings.warn(
                f"epoch {self._where[0]}, step {self._where[1]} held {self._guard.used_bytes(seen):,} B, above the "
                f"budget of {self._guard.budget_bytes:,} B; enforce=True would stop here",
                MedyateWarning,
                stacklevel=2,
            )
        return seen

    def abandon(self) -> None:
        """Take the instruments off a step that is not finished, if there is one."""
        self._meter = None
        self.undo.close()

    def _note(self, seen: StepMeasurement) -> None:
        self.seen = seen
        self.largest_training_bytes = max(self.largest_training_bytes, seen.training_bytes)

    def _before_forward(self, model: torch.nn.Module, _args: Any) -> None:
        if self._meter is not None and model.training:
            if self._passes:
                self._meter.enter_phase("forward")
            self._passes += 1

    def _after_forward(self, model: torch.nn.Module, _args: Any, _outputs: Any) -> None:
        if self._meter is not None and model.training:
            self._meter.enter_phase("loss")
            self.check()
