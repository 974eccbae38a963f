"""How to train: the schedule and what an optimizer is told."""

from __future__ import annotations

import math
from dataclasses import dataclass

from medyate_planner.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Linear warm-up, then cosine to zero; clipping of gradient norms, weight decay.

    `momentum` is read by the optimizer of that name. `accumulation`: batches per step (update mode `optimizer` alone);
    the last step of an epoch may have fewer.
    """

    epochs: int
    lr: float = 0.02
    warmup_epochs: float = 0.5
    clip: float | None = 5.0
    weight_decay: float = 0.0
    momentum: float = 0.9
    accumulation: int = 1
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
        if not 0 <= self.momentum < 1:
            raise InputError(f"--momentum: expected 0 or more, and less than 1, got {self.momentum}")
        if self.accumulation < 1:
            raise InputError(f"--accumulation: expected 1 or more, got {self.accumulation}")
        if self.seed < 0:
            raise InputError(f"--seed: expected 0 or more, got {self.seed}")

    def steps_in(self, batches: int) -> int:
        """Steps that an epoch of so many batches has."""
        return -(-batches // self.accumulation)

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of a step counted over the whole run."""
        warmup = int(min(self.warmup_epochs, self.epochs) * steps_per_epoch)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        rest = max(1, self.epochs * steps_per_epoch - warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / rest))
