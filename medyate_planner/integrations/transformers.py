"""Planned training in the Trainer of transformers.

    with medyate_planner.prepare(model, plan) as session:
        planned = PlannedTrainingCallback(session)
        optimizer = torch.optim.AdamW(session.parameters(), lr=1e-3)  # update mode fused: FusedSGD(session, lr=0.02)
        Trainer(model, args, train_dataset=…, callbacks=[planned], optimizers=(optimizer, None),
                compute_loss_func=planned.compute_loss).train()

The plan has to be made with the inputs by name that the model will be called with. With `labels` among them the model
computes its own loss, as ever; without, `compute_loss` is the plan's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from medyate_planner.errors import InputError
from medyate_planner.integrations.steps import PlannedSteps
from medyate_planner.losses import Loss, LossFunction, named_loss
from medyate_planner.training.facade import bare
from medyate_planner.training.loop import MEASURED_STEP
from medyate_planner.training.measure import StepMeasurement
from medyate_planner.training.session import Session

try:
    import accelerate  # noqa: F401  (the Trainer needs it)
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "medyate_planner.integrations.transformers needs transformers and accelerate: "
        "pip install 'medyate-planner[trainer]'"
    ) from error

LOGGED = "medyate/training_bytes"
_STATE = "medyate"  # in the first parameter group of an optimizer's state_dict
_ACCEPTS = "accepts_loss_kwargs"  # a model's attribute that the Trainer looks at
_IGNORED = -100  # labels that transformers does not count


class PlannedTrainingCallback(TrainerCallback):
    """Trains a session's model in a Trainer by its plan. Make it before the Trainer, and one for each `train()`.

    Channels are redrawn as the plan's sampling says; the second step of every epoch is measured, and what it held
    stands in the log as `medyate/training_bytes`. `max_grad_norm` holds for all parameters of the session together; in
    update mode `fused` layer by layer, unless the `FusedSGD` has a clip of its own. The sampler's state is saved with
    the optimizer's, so `resume_from_checkpoint` goes on as if never stopped.

    Args:
        session: From `medyate_planner.prepare`, of a plan made with inputs by name.
        loss: For `compute_loss`, if the plan was made with a loss of the user's own.
        enforce: Measure every step, and stop training when one exceeds the budget.

    Limits: loggers that the Trainer itself adds (`report_to`) come before this callback, and do not see what it logs.
    """

    def __init__(
        self, session: Session, *, loss: str | LossFunction | Loss | None = None, enforce: bool = False
    ) -> None:
        self.steps = PlannedSteps(session, enforce=enforce)
        self.session = session
        self._model: nn.Module = session.model
        self._names = {i.name for i in self.steps.plan.model.inputs}
        if None in self._names:
            raise InputError(
                "the Trainer gives inputs by name, and the plan was made without names; plan again with "
                'example inputs such as {"input_ids": …}'
            )
        self._saves = False
        self._resumed = True  # the epoch that begins may be one that had begun before
        self._epoch = self._step = 0
        self._max_grad_norm = 0.0
        self._grad_norm: Tensor | None = None
        self._given_loss = loss
        # Else the Trainer would hand the number of labels in a whole step to a model whose forward takes anything.
        session.closing.callback(
            vars(self._model).update, {k: v for k, v in vars(self._model).items() if k == _ACCEPTS}
        )
        session.closing.callback(vars(self._model).pop, _ACCEPTS)
        setattr(self._model, _ACCEPTS, False)
        session.attach()

    @cached_property
    def loss(self) -> Loss:
        """What `compute_loss` computes."""
        return named_loss(self.steps.plan.loss if self._given_loss is None else self._given_loss)

    @property
    def seen(self) -> StepMeasurement | None:
        """The last step that was measured."""
        return self.steps.seen

    @property
    def largest_training_bytes(self) -> int:
        """The most that any measured step held."""
        return self.steps.largest_training_bytes

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the sampler's state to what is saved of the optimizer."""
        self._save_with(kwargs.get("optimizer"))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the loop, and stand where a checkpoint was taken."""
        optimizer = kwargs.get("optimizer")
        self._save_with(optimizer)
        self.steps.start(
            [optimizer],
            accumulation=args.gradient_accumulation_steps,
            processes=max(args.world_size, args.n_gpu),
            clip=args.max_grad_norm,
        )
        loaded = bare(optimizer).param_groups[0].pop(_STATE, None)
        if loaded is not None and loaded["interval"] is not None:
            self.steps.load(loaded)
        hook = self._model.register_forward_pre_hook(self._check_names, with_kwargs=True)
        self.session.closing.callback(hook.remove)
        self._resumed = True

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count steps anew."""
        done = state.epoch or 0.0
        self._epoch = math.floor(done) if self._resumed else math.ceil(done)
        self._step, self._resumed = 0, False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw, measure the epoch's second step, and take clipping over from the Trainer.

        The Trainer would clip the model's own parameters, to which those of selected channels do not belong.
        """
        self.steps.draw(epoch=self._epoch, steps_done=state.global_step)
        only_step = state.max_steps <= state.num_train_epochs
        measured = 0 if only_step else MEASURED_STEP
        self.steps.open((self._epoch, self._step), [kwargs.get("optimizer")], measure=self._step == measured)
        self._max_grad_norm = args.max_grad_norm or 0.0
        self.steps.undo.callback(setattr, args, "max_grad_norm", args.max_grad_norm)
        args.max_grad_norm = 0.0

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clip; stop before the optimizer updates anything, if it comes to that."""
        fused = self.session.mode.is_fused
        self.steps.check(undone=not fused)
        if not fused:
            limit = self._max_grad_norm or math.inf
            self._grad_norm = nn.utils.clip_grad_norm_(self.session.parameters(), limit, foreach=False)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """See what the step held."""
        self._step += 1
        self.steps.close()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add what was measured, and put the norm of all gradients in the place of that of the model's own."""
        for entry in (logs or {}, *state.log_history[-1:]):
            if "loss" not in entry:
                continue
            entry.pop("grad_norm", None)
            if self._grad_norm is not None:
                entry["grad_norm"] = float(self._grad_norm)
            if self.seen is not None:
                entry[LOGGED] = self.seen.training_bytes

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the model back."""
        self.session.finish()

    def compute_loss(self, outputs: Any, labels: Any, num_items_in_batch: Tensor | float | None = None) -> Tensor:
        """The plan's loss, for the Trainer's `compute_loss_func`.

        The Trainer does not average over the batches that it accumulates when a loss is given to it: here each batch
        weighs as many labels as it has.
        """
        result = self.loss.function(outputs, labels)
        if num_items_in_batch is not None:
            counted = labels[:, 1:] if self.loss.name == "next-token" else labels
            result = result * (float(counted.ne(_IGNORED).sum()) / float(num_items_in_batch))
        self.steps.check()
        return result

    def _save_with(self, optimizer: Any) -> None:
        if self._saves or optimizer is None:
            return

        def add(_optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
            state_dict["param_groups"][0][_STATE] = self.steps.state()

        self.session.closing.callback(bare(optimizer).register_state_dict_post_hook(add).remove)
        self._saves = True

    def _check_names(self, model: nn.Module, _args: Any, kwargs: Mapping[str, Any]) -> None:
        if not model.training:
            return
        missing, unknown = (
            sorted(map(str, a - b)) for a, b in ((self._names, set(kwargs)), (set(kwargs), self._names))
        )
        if missing:
            why = "leave out compute_loss_func" if missing == ["labels"] else "add it to the data, or plan again"
            raise InputError(f"the model is called without {', '.join(missing)}, which the plan was made with; {why}")
        if unknown:
            hints = {
                "labels": "give the Trainer compute_loss_func, or plan with labels among the example inputs",
                "num_items_in_batch": "make the PlannedTrainingCallback before the Trainer",
            }
            raise InputError(
                f"the model is called with {', '.join(unknown)}, which the plan was made without; "
                f"{hints.get(unknown[0], 'plan again with it, or leave it out of the data')}"
            )
