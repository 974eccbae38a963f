"""The training loop: planned steps, a schedule, evaluation and measurement every epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from medyate_planner.errors import DivergenceError, InputError
from medyate_planner.losses import Loss, first_output
from medyate_planner.training.measure import StepMeasurement, StepMeter
from medyate_planner.training.session import Session

MEASURED_STEP = 1  # the second step of an epoch: the first may still warm caches


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train: SGD, linear warm-up then cosine to zero, per-layer clipping of each gradient's norm."""

    epochs: int
    lr: float = 0.02
    warmup_epochs: float = 0.5
    clip: float | None = 5.0
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise InputError(f"--epochs: expected 1 or more, got {self.epochs}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"--lr: expected a positive number, got {self.lr}")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"--clip: expected a positive number, got {self.clip}")
        for name, value in (("--weight-decay", self.weight_decay), ("--warmup-epochs", self.warmup_epochs)):
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name}: expected 0 or more, got {value}")
        if self.seed < 0:
            raise InputError(f"--seed: expected 0 or more, got {self.seed}")

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of a step counted over the whole run."""
        warmup = int(min(self.warmup_epochs, self.epochs) * steps_per_epoch)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        rest = max(1, self.epochs * steps_per_epoch - warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / rest))


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Where batches come from: `train(epoch)` and `test()` give (input, target) pairs; steps = len of an epoch."""

    train: Callable[[int], Iterable[tuple[Any, Any]]]
    test: Callable[[], Iterable[tuple[Any, Any]]]
    steps_per_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochMetrics:
    """One line of metrics.jsonl."""

    epoch: int
    train_loss: float
    test_accuracy: float | None
    test_loss: float | None
    measured_training_bytes: int
    measured_saved_bytes: int
    measured_live_peak_bytes: int
    lr: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What happened in an epoch: its metrics, the channels that were trained, and the sampler's state at its end
    (empty without boosting)."""

    metrics: EpochMetrics
    selection: Mapping[str, Sequence[int]]
    sampler: Mapping[str, Tensor] = field(default_factory=dict)


def fit(
    session: Session,
    batches: Batches,
    loss: Loss,
    recipe: Recipe,
    *,
    start_epoch: int = 0,
    on_step: Callable[[int, int, float], None] = lambda _epoch, _step, _loss: None,
) -> Iterator[Epoch]:
    """Train epoch after epoch, yielding after each; a function of the recipe, the data, the weights and the sampler's
    state alone.

    `on_step(epoch, step, loss)` is for progress displays.

    Raises:
        DivergenceError: the loss is not finite; the weights are those before that step.
        InputError: an epoch holds no batch.
    """
    if batches.steps_per_epoch < 1:
        raise InputError("the training set is smaller than one batch; lower --batch-size or add data")
    for epoch in range(start_epoch, recipe.epochs):
        began = time.perf_counter()
        selection = session.train().resample(epoch)
        total, steps, lr = 0.0, 0, 0.0
        measured: StepMeasurement | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed * 100_003 + epoch)
            for step, (x, target) in enumerate(batches.train(epoch)):
                lr = recipe.lr_at(epoch * batches.steps_per_epoch + step, batches.steps_per_epoch)
                session.set_lr(lr, weight_decay=recipe.weight_decay, clip=recipe.clip)
                measure = step == min(MEASURED_STEP, batches.steps_per_epoch - 1)
                value, seen = train_step(session, x, target, loss, measure=measure, where=(epoch, step))
                measured = seen or measured
                total, steps = total + value, steps + 1
                on_step(epoch, step, value)
        if measured is None:
            raise InputError("the training set gave no batch; lower --batch-size or add data")
        test_loss, accuracy = evaluate(session, batches.test(), loss)
        metrics = EpochMetrics(
            epoch=epoch,
            train_loss=total / steps,
            test_accuracy=accuracy,
            test_loss=test_loss if math.isfinite(test_loss) else None,
            measured_training_bytes=measured.training_bytes,
            measured_saved_bytes=measured.saved_bytes,
            measured_live_peak_bytes=measured.live_peak_bytes or 0,
            lr=lr,
            seconds=time.perf_counter() - began,
        )
        yield Epoch(metrics=metrics, selection=selection, sampler=session.sampler_state())


def train_step(
    session: Session, x: Any, target: Any, loss: Loss, *, measure: bool, where: tuple[int, int] = (0, 0)
) -> tuple[float, StepMeasurement | None]:
    """One planned step; returns the loss and, if asked, what the step really held.

    Raises:
        DivergenceError: the loss is not finite, before anything was updated.
    """
    x, target = to_model(session.model, x), to_model(session.model, target, cast=False)
    if not measure:
        return _forward_backward(session, x, target, loss, where), None
    with StepMeter(session, [*tensors_of(x), *tensors_of(target)], live=True) as meter:
        outputs = invoke(session, x)
        meter.enter_phase("loss")
        result = loss.function(outputs, target)
        del outputs  # as in an unmeasured step, where nothing but the graph holds them
        meter.enter_phase("backward")
        value = _backward(result, where, session.rule.lr)
    return value, meter.measurement(loss=value)


def evaluate(session: Session, batches: Iterable[tuple[Any, Any]], loss: Loss) -> tuple[float, float | None]:
    """Mean loss and, for class targets, the share of right answers, by the user's own model."""
    try:
        return evaluate_model(session.eval().model, batches, loss)
    finally:
        session.train()


@torch.no_grad()
def evaluate_model(model: nn.Module, batches: Iterable[tuple[Any, Any]], loss: Loss) -> tuple[float, float | None]:
    """Mean loss and, for class targets, the share of right answers (NaN losses included, so that none is hidden)."""
    total = right = counted = 0.0
    samples = 0
    for x, target in batches:
        target = to_model(model, target, cast=False)
        outputs = invoke(model, to_model(model, x))
        size = int(tensors_of(target)[0].shape[0])
        total += float(loss.function(outputs, target)) * size
        samples += size
        if _is_classes(target):
            right += float((first_output(outputs).argmax(dim=1) == target).sum())
            counted += target.numel()
    return total / max(1, samples), right / counted if counted else None


def invoke(callee: Callable[..., Any], x: Any) -> Any:
    """Call a model on one batch: a tensor, a tuple of inputs, or a dict of keyword inputs."""
    if isinstance(x, Mapping):
        return callee(**x)
    if isinstance(x, (tuple, list)):
        return callee(*x)
    return callee(x)


def to_model(model: nn.Module, value: Any, *, cast: bool = True) -> Any:
    """Tensors on the model's device and, if floating and `cast`, of its type."""
    first = next(iter(model.parameters()))

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if cast and leaf.is_floating_point():
            return leaf.to(device=first.device, dtype=first.dtype)
        return leaf.to(first.device)

    return tree_map(move, value)


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in a nest of containers."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _forward_backward(session: Session, x: Any, target: Any, loss: Loss, where: tuple[int, int]) -> float:
    return _backward(loss.function(invoke(session, x), target), where, session.rule.lr)


def _backward(loss: Tensor, where: tuple[int, int], lr: float) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise DivergenceError(
            f"the loss became {value} in epoch {where[0]}, step {where[1]} (lr {lr:g}); lower --lr, "
            "set --clip, or check the data",
            epoch=where[0],
            step=where[1],
            lr=lr,
        )
    loss.backward()  # type: ignore[no-untyped-call]
    return value


def _is_classes(target: Any) -> bool:
    return isinstance(target, Tensor) and not target.is_floating_point()
