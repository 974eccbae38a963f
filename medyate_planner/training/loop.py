"""The training loop: planned steps, draws, a schedule, checkpoints, evaluation and measurement every epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from medyate_planner.errors import BudgetExceededError, InputError
from medyate_planner.losses import Loss
from medyate_planner.training.batches import Batches, invoke, tensors_of, to_model
from medyate_planner.training.evaluation import evaluate, evaluate_model
from medyate_planner.training.guard import Guard
from medyate_planner.training.measure import StepMeasurement
from medyate_planner.training.progress import Checkpoint, Epoch, EpochMetrics, Interval, Measured, Progress
from medyate_planner.training.randomness import random_state, restore_random_state, seeded
from medyate_planner.training.recipe import Recipe
from medyate_planner.training.session import Session
from medyate_planner.training.step import StepOrder, take_step, train_step
from medyate_planner.training.stepping import stepper_for

__all__ = [
    "Batches",
    "Epoch",
    "EpochMetrics",
    "Recipe",
    "Watch",
    "evaluate",
    "evaluate_model",
    "fit",
    "invoke",
    "tensors_of",
    "to_model",
    "train_step",
]
MEASURED_STEP = 1  # the second step of an epoch: the first may still warm caches


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What is told while training. For displays: `on_step(epoch, step, loss)`, `on_draw` before the first step that
    trains new channels, `on_measured` after each step that was measured. `on_checkpoint`: before the first step with a
    guard and after every `checkpoint_every` steps, if given (the end of an epoch has its own)."""

    on_step: Callable[[int, int, float], None] = lambda _epoch, _step, _loss: None
    on_draw: Callable[[Interval], None] = lambda _interval: None
    on_measured: Callable[[StepMeasurement], None] = lambda _step: None
    on_checkpoint: Callable[[Checkpoint], None] = lambda _checkpoint: None
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        if self.checkpoint_every is not None and self.checkpoint_every < 1:
            raise InputError(f"--checkpoint-every: expected 1 or more, got {self.checkpoint_every}")


def fit(
    session: Session,
    batches: Batches,
    loss: Loss,
    recipe: Recipe,
    *,
    interval_steps: int | None = None,
    resume: Checkpoint | None = None,
    guard: Guard | None = None,
    watch: Watch | None = None,
) -> Iterator[Epoch]:
    """Train epoch after epoch, yielding after each; a function of the recipe, the data, the weights and the sampler's
    state alone.

    Args:
        interval_steps: Channels are redrawn every so many steps; None: every epoch.
        resume: Go on from here; the model's weights must be those of that moment.
        guard: Measure every step, and stop after the first above the budget, or in its middle.

    Raises:
        DivergenceError: the loss is not finite; the weights are those before that step.
        BudgetExceededError: the guard stopped it.
        InputError: an epoch holds fewer batches than it should, or gradients of more batches than planned would wait.
    """
    if batches.steps_per_epoch < 1:
        raise InputError("the training set is smaller than one batch; lower --batch-size or add data")
    if recipe.accumulation > session.mode.accumulation:
        raise InputError(
            f"accumulation over {recipe.accumulation} batches: the plan was made for {session.mode.accumulation}, and "
            f"gradients that wait would break its budget; plan again with --accumulation {recipe.accumulation}"
        )
    run = _Run(session, batches, loss, recipe, interval_steps, guard, watch or Watch())
    run.begin(resume)
    while run.at.epoch < recipe.epochs:
        yield run.epoch()


class _Run:
    """One run: where it stands, and everything that it drives."""

    def __init__(
        self,
        session: Session,
        batches: Batches,
        loss: Loss,
        recipe: Recipe,
        interval_steps: int | None,
        guard: Guard | None,
        watch: Watch,
    ) -> None:
        self.session, self.batches, self.loss, self.recipe = session, batches, loss, recipe
        self.guard, self.watch = guard, watch
        self.steps = recipe.steps_in(batches.steps_per_epoch)
        self.interval_steps = interval_steps or self.steps
        self.stepper = stepper_for(session, recipe)
        self.device = next(iter(session.model.parameters())).device
        self.at = Progress()
        self.selection: Mapping[str, Sequence[int]] = {}
        self.drawn: list[Interval] = []
        self.random: Mapping[str, torch.Tensor] = {}  # as it is in the middle of an epoch to go on with

    def begin(self, resume: Checkpoint | None) -> None:
        """Stand where the checkpoint was taken: its channels are selected, and the optimizer's state is theirs."""
        if resume is None:
            if self.guard is not None:
                self.watch.on_checkpoint(self.checkpoint())
            return
        self.at, self.random = resume.progress, resume.random
        self.session.load_sampler_state(resume.sampler)
        if self.at.interval is not None:
            self.selection = self.session.resample(self.at.interval)
            self.watch.on_draw(self._interval())
        self.stepper.load(resume.optimizer)

    def epoch(self) -> Epoch:
        """Train the rest of an epoch, then evaluate."""
        began = time.perf_counter() - self.at.seconds
        self.session.train()
        if self.at.step < self.steps:
            with seeded(self.recipe.seed * 100_003 + self.at.epoch, self.device):
                self._steps(began)
        test_loss, accuracy = evaluate(self.session, self.batches.test(), self.loss)
        at, measured = self.at, self.at.measured
        assert measured is not None
        metrics = EpochMetrics(
            epoch=at.epoch,
            train_loss=at.loss_sum / self.batches.steps_per_epoch,
            test_accuracy=accuracy,
            test_loss=test_loss if math.isfinite(test_loss) else None,
            measured_training_bytes=measured.training_bytes,
            measured_saved_bytes=measured.saved_bytes,
            measured_live_peak_bytes=measured.live_peak_bytes,
            lr=at.lr,
            seconds=time.perf_counter() - began,
        )
        self.at = Progress(epoch=at.epoch + 1, steps_done=at.steps_done, interval=at.interval)
        return Epoch(metrics=metrics, selection=self.selection, checkpoint=self.checkpoint())

    def checkpoint(self, random: Mapping[str, torch.Tensor] | None = None) -> Checkpoint:
        """What stands now, and the intervals drawn since the last one."""
        drawn, self.drawn = tuple(self.drawn), []
        return Checkpoint(
            progress=self.at,
            optimizer=self.stepper.state(),
            sampler=self.session.sampler_state(),
            random=random or {},
            drawn=drawn,
        )

    def _steps(self, began: float) -> None:
        source = self.batches.begin(self.at.epoch, self.at.step * self.recipe.accumulation)
        if self.at.step:
            restore_random_state(self.random, self.device)
        while self.at.step < self.steps:
            self._redraw()
            before = random_state(self.device) if self.guard is not None else {}
            try:
                self._step(source)
            except BudgetExceededError as error:
                if error.undone:
                    self.watch.on_checkpoint(self.checkpoint(before))
                raise
            self.at = replace(self.at, seconds=time.perf_counter() - began)
            every = self.watch.checkpoint_every
            if every is not None and self.at.steps_done % every == 0:
                self.watch.on_checkpoint(self.checkpoint(random_state(self.device)))

    def _redraw(self) -> None:
        at, number = self.at, self.at.steps_done // self.interval_steps
        if number != at.interval:
            self.selection = self.session.resample(number)
            self.at = replace(at, interval=number)
            self.drawn.append(self._interval())
            self.watch.on_draw(self.drawn[-1])

    def _interval(self) -> Interval:
        at = self.at
        return Interval(epoch=at.epoch, interval=at.interval or 0, step=at.steps_done, layers=self.selection)

    def _step(self, source: Iterator[tuple[Any, Any]]) -> None:
        at, recipe = self.at, self.recipe
        in_full = at.step == min(MEASURED_STEP, self.steps - 1)
        order = StepOrder(
            where=(at.epoch, at.step),
            lr=recipe.lr_at(at.steps_done, self.steps),
            passes=min(recipe.accumulation, self.batches.steps_per_epoch - at.step * recipe.accumulation),
            measure=in_full or self.guard is not None,
            live=in_full or (self.guard is not None and self.guard.live),
            guard=self.guard,
        )
        total, seen = take_step(self.session, self.stepper, lambda: self._next(source), self.loss, order)
        self.at = replace(
            at,
            step=at.step + 1,
            steps_done=at.steps_done + 1,
            loss_sum=at.loss_sum + total,
            lr=order.lr,
            measured=Measured.of(seen) if in_full and seen is not None else at.measured,
        )
        if seen is not None:
            self.watch.on_measured(seen)
        self.watch.on_step(at.epoch, at.step, total / order.passes)

    def _next(self, source: Iterator[tuple[Any, Any]]) -> tuple[Any, Any]:
        for batch in source:
            return batch
        raise InputError(
            f"the training set ended early in epoch {self.at.epoch}, step {self.at.step}: expected "
            f"{self.batches.steps_per_epoch} batches in every epoch; lower --batch-size, or correct steps_per_epoch"
        )
