"""Options of `medyate train` by theme: the recipe, and draws other than the plan's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from medyate_planner.cli.plan_options import read_interval

if TYPE_CHECKING:
    from medyate_planner.planning.plan import Plan
    from medyate_planner.training.recipe import Recipe


@Parameter(name="*", group="Recipe")
@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """How to train."""

    lr: float = 0.02
    "Learning rate after warm-up."
    warmup_epochs: float = 0.5
    "Epochs of linear warm-up before the cosine."
    clip: float = 5.0
    "Largest gradient norm (of each layer, in update mode optimizer of all together); larger ones are scaled down."
    weight_decay: float = 0.0
    "Weight decay of what is updated."
    momentum: float | None = None
    "Of a plan with --optimizer momentum; 0.9 by default."
    head_epochs: int = 2
    "Epochs of training the head alone where the plan has no importance file."
    seed: int = 0
    "Seed of data order and augmentation."

    def recipe(self, epochs: int, plan: Plan) -> Recipe:
        """The recipe for a plan.

        Raises:
            InputError: a number out of range, or an option that would be ignored.
        """
        from medyate_planner.errors import InputError
        from medyate_planner.training.recipe import Recipe

        if self.head_epochs < 0:
            raise InputError(f"--head-epochs: expected 0 or more, got {self.head_epochs}")
        if self.momentum is not None and plan.optimizer != "momentum":
            raise InputError(f"--momentum belongs to plans with --optimizer momentum; this one has {plan.optimizer}")
        return Recipe(
            epochs=epochs,
            lr=self.lr,
            warmup_epochs=self.warmup_epochs,
            clip=self.clip,
            weight_decay=self.weight_decay,
            momentum=0.9 if self.momentum is None else self.momentum,
            accumulation=plan.accumulation,
            seed=self.seed,
        )


@Parameter(name="*", group="Draws other than the plan's (bytes stay the same)")
@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """Draws other than the plan's, within the same quotas."""

    interval: str | None = None
    "How often channels are redrawn: epoch, or a number of steps."
    sampling: str | None = None
    "uniform, weighted, top or static."
    alpha: float | None = None
    "Exponent of the importance in weighted draws."
    boost: float | None = None
    "Weight of gradients seen while training in weighted draws; 0: none."

    def applied(self, plan: Plan, importance: Path | None) -> Plan:
        """The plan with these draws; its quotas, and with them its bytes, stay.

        Raises:
            InputError: draws that are unknown, that need an importance which is not there, or that would be ignored.
        """
        from medyate_planner.errors import InputError

        given = {name: value for name, value in self._given().items() if value is not None}
        self._check_place(plan, given)
        sampling = plan.sampling.model_copy(update=given)
        by_importance = sampling.method in ("weighted", "top")
        if by_importance and importance is None:
            raise InputError(
                f"sampling {sampling.method} needs the importance of channels; pass --importance FILE from "
                "`medyate rank`"
            )
        if "boost" in given and not by_importance:
            raise InputError("--boost changes the importance that draws go by: it needs --sampling weighted")
        if "alpha" in given and sampling.method != "weighted":
            raise InputError("--alpha is the exponent of weighted draws: it needs --sampling weighted")
        if "interval" in given and sampling.method in ("static", "fixed"):
            raise InputError(f"--interval says how often channels are redrawn: sampling {sampling.method} never does")
        return plan.model_copy(update={"sampling": sampling})

    def _given(self) -> dict[str, Any]:
        from medyate_planner.errors import InputError, unknown_name
        from medyate_planner.planning.sampling import METHODS

        if self.sampling is not None and self.sampling not in METHODS:
            raise unknown_name("--sampling", self.sampling, METHODS)
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise InputError(f"--alpha: expected a finite number of 0 or more, got {self.alpha}")
        if self.boost is not None and not 0 <= self.boost <= 1:
            raise InputError(f"--boost: expected a number of 0 to 1, got {self.boost}")
        interval = None if self.interval is None else read_interval(self.interval)
        return {"interval": interval, "method": self.sampling, "alpha": self.alpha, "boost": self.boost}

    @staticmethod
    def _check_place(plan: Plan, given: dict[str, Any]) -> None:
        """Strategies that draw across layers chose their quotas by draws of their own."""
        from medyate_planner.errors import InputError
        from medyate_planner.planning.strategies import DRAWS

        for name in ("method", "alpha"):
            own = plan.sampling.channels is not None or plan.sampling.pool is not None
            if name in given and (plan.strategy in DRAWS or own):
                option = "sampling" if name == "method" else name
                raise InputError(
                    f"--{option}: strategy {plan.strategy} has draws of its own, by which its quotas were chosen; "
                    "leave it out, or plan again"
                )
