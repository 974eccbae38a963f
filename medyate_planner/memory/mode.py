"""How weights are updated, and what that has in memory beside gradients (DESIGN sections 3 and 7)."""

from __future__ import annotations

from dataclasses import dataclass

from medyate_planner.errors import InputError, unknown_name
from medyate_planner.memory.channels import STATE_SLOTS

UPDATES = ("fused", "optimizer")
NORMS = ("frozen", "train")
_STEP_BYTES = {"adam": 4, "adamw": 4}  # the step counter of each parameter tensor
_WORKSPACE_COPIES = {"sgd": 1, "momentum": 1, "adam": 3, "adamw": 3}  # of the parameter that is being stepped


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateMode:
    """Update mode, optimizer, and the passes whose gradients are summed before a step.

    `fused`: plain SGD in place during backward; no state, one layer's gradient at a time. `optimizer`: a torch
    optimizer steps compact copies of the selected channels (a layer in full, and a bias, are stepped themselves).
    """

    update: str = "fused"
    optimizer: str = "sgd"
    accumulation: int = 1

    def __post_init__(self) -> None:
        if self.update not in UPDATES:
            raise unknown_name("update mode", self.update, UPDATES)
        if self.optimizer not in STATE_SLOTS:
            raise unknown_name("optimizer", self.optimizer, STATE_SLOTS)
        if self.accumulation < 1:
            raise InputError(f"accumulation: expected 1 or more passes, got {self.accumulation}")
        if self.update == "fused" and self.optimizer != "sgd":
            raise InputError(
                f"optimizer {self.optimizer} needs update mode optimizer: mode fused is plain SGD during backward"
            )
        if self.update == "fused" and self.accumulation > 1:
            raise InputError(
                f"accumulation over {self.accumulation} passes needs update mode optimizer: mode fused updates in each "
                "backward"
            )

    @property
    def is_fused(self) -> bool:
        return self.update == "fused"

    @property
    def has_state(self) -> bool:
        return bool(STATE_SLOTS[self.optimizer])

    def state_bytes(self, gradient_bytes: int, tensors: int) -> int:
        """Optimizer state of so many bytes of parameters in so many tensors."""
        return STATE_SLOTS[self.optimizer] * gradient_bytes + _STEP_BYTES.get(self.optimizer, 0) * tensors

    def copy_bytes(self, gradient_bytes: int) -> int:
        """Working copy of selected channels."""
        return 0 if self.is_fused else gradient_bytes

    @property
    def workspace_copies(self) -> int:
        """How often a parameter is alive once more while the optimizer steps it; at most, derived here."""
        return 0 if self.is_fused else _WORKSPACE_COPIES[self.optimizer]


FUSED = UpdateMode()


def choose_mode(update: str | None, optimizer: str | None, accumulation: int | None) -> UpdateMode | None:
    """The mode that is asked for, `fused` where nothing else is needed; None if nothing is asked for."""
    if update is None and optimizer is None and accumulation is None:
        return None
    plain = optimizer in (None, "sgd") and accumulation in (None, 1)
    return UpdateMode(
        update=update or ("fused" if plain else "optimizer"),
        optimizer=optimizer or "sgd",
        accumulation=accumulation or 1,
    )
