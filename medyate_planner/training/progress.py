"""Where a run stands between two steps, and what is told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from medyate_planner.training.measure import StepMeasurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Bytes of the step of an epoch that was measured in full."""

    training_bytes: int
    saved_bytes: int
    live_peak_bytes: int

    @classmethod
    def of(cls, step: StepMeasurement) -> Measured:
        """The figures that are told of a step."""
        return cls(
            training_bytes=step.training_bytes,
            saved_bytes=step.saved_bytes,
            live_peak_bytes=step.live_peak_bytes or 0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Whole epochs done, and of the one that runs: steps done, the sum of its batches' losses, the last learning rate,
    seconds, and what was measured. `steps_done` counts over the run; `interval` is whose channels are selected."""

    epoch: int = 0
    step: int = 0
    steps_done: int = 0
    interval: int | None = None
    loss_sum: float = 0.0
    lr: float = 0.0
    seconds: float = 0.0
    measured: Measured | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON types; floats survive the round trip bit for bit."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Progress:
        """The inverse of `to_dict`.

        Raises:
            TypeError: other keys than those.
        """
        measured = data["measured"]
        return cls(**{**data, "measured": None if measured is None else Measured(**measured)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Channels drawn before a step (counted over the run), to be trained until the next draw: a line of
    selections.jsonl."""

    epoch: int
    interval: int
    step: int
    layers: Mapping[str, Sequence[int]]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        layers = {name: list(channels) for name, channels in self.layers.items()}
        return {"epoch": self.epoch, "interval": self.interval, "step": self.step, "layers": layers}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a run needs beside the weights to go on as if it had never stopped.

    `random` is empty between epochs, which begin with a seed. `drawn` are the intervals since the last checkpoint: for
    selections.jsonl, not to go on. Tensors may be those of the run: save them before the next step.
    """

    progress: Progress
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    sampler: Mapping[str, Tensor] = field(default_factory=dict)
    random: Mapping[str, Tensor] = field(default_factory=dict)
    drawn: tuple[Interval, ...] = ()


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
    """What happened in an epoch: its metrics, the channels that were trained last in it, and the checkpoint at its
    end."""

    metrics: EpochMetrics
    selection: Mapping[str, Sequence[int]]
    checkpoint: Checkpoint

    def __repr__(self) -> str:
        """One line."""
        from medyate_planner.training.summary import line_of_epoch

        return line_of_epoch(self)


class Epochs(list[Epoch]):
    """Epochs in order, which a REPL and a notebook show as a table."""

    def __repr__(self) -> str:
        from medyate_planner.training.summary import summary_of_epochs

        return summary_of_epochs(self).text()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from medyate_planner.training.summary import summary_of_epochs

        return summary_of_epochs(self).html()
