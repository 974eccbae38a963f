"""What is live at each moment of a step, by category: the nouns of the memory timeline. Plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property


class Category(str, Enum):
    """Why a storage is in memory. Every live storage is in exactly one category at a time.

    A storage that backward needs counts as kept, also while it is an input or an activation still in use.
    """

    WEIGHTS = "weights"
    INPUTS = "inputs"
    ACTIVATIONS = "activations"
    KEPT = "kept"
    KEPT_SELECTED = "kept_selected"
    KEPT_PASSTHROUGH = "kept_passthrough"
    KEPT_LOSS = "kept_loss"
    ACTIVATION_GRADIENTS = "activation_gradients"
    WEIGHT_GRADIENTS = "weight_gradients"
    OPTIMIZER_STATE = "optimizer_state"
    WORKING_COPIES = "working_copies"
    INDICES = "indices"

    @property
    def meaning(self) -> str:
        """The category in a reader's words."""
        return _MEANING[self]


_MEANING = {
    Category.WEIGHTS: "weights and buffers",
    Category.INPUTS: "inputs and targets",
    Category.ACTIVATIONS: "live activations",
    Category.KEPT: "kept for backward by PyTorch",
    Category.KEPT_SELECTED: "kept: selected channels",
    Category.KEPT_PASSTHROUGH: "kept: pass-through",
    Category.KEPT_LOSS: "kept by the loss",
    Category.ACTIVATION_GRADIENTS: "gradients in flight",
    Category.WEIGHT_GRADIENTS: "weight gradients",
    Category.OPTIMIZER_STATE: "optimizer state",
    Category.WORKING_COPIES: "working copies",
    Category.INDICES: "channel indices",
}
CATEGORIES = tuple(Category)
CATEGORY_INDEX = {category: index for index, category in enumerate(CATEGORIES)}
PHASES = ("forward", "loss", "backward", "optimizer")


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the model an operator was called: the module's path and the source line, "" if unknown."""

    module: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveMoment:
    """Bytes live after one operator, in the order of `CATEGORIES`."""

    phase: str
    operator: str
    place: Place
    live_bytes: tuple[int, ...]

    @property
    def total_bytes(self) -> int:
        return sum(self.live_bytes)

    def of(self, category: Category) -> int:
        """Bytes of one category."""
        return self.live_bytes[CATEGORY_INDEX[category]]


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The moments of one step, in order."""

    moments: tuple[LiveMoment, ...]

    @cached_property
    def peak_index(self) -> int:
        """Index of the first largest moment."""
        totals = [moment.total_bytes for moment in self.moments]
        return totals.index(max(totals))

    @property
    def peak(self) -> LiveMoment:
        """The first largest moment."""
        return self.moments[self.peak_index]
