"""Boosting: the importance that draws go by follows the gradients that training sees anyway.

In each step every trained channel's squared gradient norm is added up, before clipping. When the next interval is
drawn, the importance of the channels that were trained moves towards what was seen of them, by the weight
`sampling.boost`; all others keep theirs. How many channels of a layer are trained stays as planned, so the budget
holds. Source: MeDyate (arXiv 2510.20979), whose exact formula was not available; derived here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from medyate_planner.errors import DivergenceError, InputError
from medyate_planner.graph import Layer
from medyate_planner.importance.energy import Importance, Vector
from medyate_planner.importance.metrics import channel_scores
from medyate_planner.planning.plan import Plan
from medyate_planner.planning.sampling import draw_planned
from medyate_planner.training.slots import Slot

_BY_NUMPY = (torch.float32, torch.float64, torch.float16)


@dataclass(slots=True)
class _Seen:
    """The trained channels of a layer, and the sum over the interval's steps of what was seen of each."""

    channels: list[int]
    total: Vector
    steps: int = 0


class Boosting:
    """The sampler of a plan with `sampling.boost` > 0: a layer's importance, and what the current interval has seen.

    A session draws with `draw`, then moves on with `begin`; its slots call `observe`. Drawing the current interval
    again gives the same channels and applies nothing.

    Limits: a channel of importance 0 is drawn only when no others are left, and stays at 0 until then. Gradients are
    averaged in as they are: an importance on another scale than theirs (the user's own numbers) is outweighed by
    them, or outweighs them.

    Raises:
        InputError: no importance to start from.
    """

    def __init__(self, plan: Plan, importance: Importance | None) -> None:
        if importance is None:
            raise InputError(
                "boosting needs the importance of every channel to start from; pass --importance FILE, or plan "
                "without --boost"
            )
        self.plan = plan
        self.interval: int | None = None
        self._metric = plan.sampling.metric
        self._importance: dict[str, Vector] = {
            layer.name: np.array(channel_scores(importance, layer.name, self._metric, 1), dtype=np.float64)
            for layer in plan.layers
            if not layer.head
        }
        self._seen: dict[str, _Seen] = {}

    def importance(self, interval: int | None = None) -> dict[str, Vector]:
        """Importance by layer as an interval is drawn by: of the current one (or by default) as it was at its start,
        of any other with what the current one has seen so far.

        Raises:
            DivergenceError: a gradient that was seen is not finite.
        """
        if interval is None or interval == self.interval:
            return dict(self._importance)
        boosted = dict(self._importance)
        for name, seen in self._seen.items():
            if seen.steps:
                boosted[name] = self._boosted(name, seen)
        return boosted

    def _boosted(self, name: str, seen: _Seen) -> Vector:
        boost = self.plan.sampling.boost
        result: Vector = self._importance[name].copy()
        observed: Vector = seen.total / seen.steps
        if self._metric == "raw":  # as in `channel_scores`: sqrt(mean ||g||²)
            observed = np.sqrt(observed)
        if not np.isfinite(observed).all():
            raise DivergenceError(
                f"layer {name}: a gradient of interval {self.interval} is not finite; lower --lr, set --clip, or check "
                "the data"
            )
        result[seen.channels] = (1 - boost) * result[seen.channels] + boost * observed
        return result

    def draw(self, interval: int) -> dict[str, list[int]]:
        """The channels of an interval, by layer. Changes nothing."""
        return draw_planned(self.plan, interval, self.importance(interval))

    def begin(self, interval: int, drawn: Mapping[str, Sequence[int]]) -> None:
        """The channels drawn for an interval are trained from now on: what the last one has seen is applied, once."""
        if interval == self.interval:
            return
        self._importance = self.importance(interval)
        self._seen = {name: _Seen(list(channels), np.zeros(len(channels))) for name, channels in drawn.items()}
        self.interval = interval

    def observe(self, slot: Slot, weight_gradient: Tensor | None) -> None:
        """Add up the squared norms of a layer's gradient in this step; a layer trained in full is passed over."""
        seen = self._seen.get(slot.layer.name)
        if seen is None or weight_gradient is None or isinstance(weight_gradient, FakeTensor):
            return
        squares = squares_of_selection(slot.layer, weight_gradient)
        seen.total += np.sqrt(squares) if self._metric == "rgn" else squares
        seen.steps += 1

    def state(self) -> dict[str, Tensor]:
        """Everything that draws to come depend on, as tensors on the host; `load` is the inverse."""
        state = {f"importance/{name}": torch.from_numpy(v.copy()) for name, v in self._importance.items()}
        for name, seen in self._seen.items():
            state[f"seen/{name}"] = torch.from_numpy(seen.total.copy())
            state[f"steps/{name}"] = torch.tensor(seen.steps)
        return state | {"interval": torch.tensor(-1 if self.interval is None else self.interval)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state; the session then has to draw `interval` again.

        Raises:
            InputError: it is not the state of a sampler of this plan. Nothing has changed then.
        """
        try:
            interval = int(state["interval"])
            importance = {name: _like(own, state[f"importance/{name}"]) for name, own in self._importance.items()}
            drawn = draw_planned(self.plan, interval, importance) if interval >= 0 else {}
            seen = {
                name: _Seen(chosen, _like(np.zeros(len(chosen)), state[f"seen/{name}"]), int(state[f"steps/{name}"]))
                for name, chosen in drawn.items()
            }
        except (KeyError, ValueError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(
                f"sampler state: does not fit the plan ({what}); start over, or give the state of a run of this plan"
            ) from error
        self._importance, self._seen, self.interval = importance, seen, None if interval < 0 else interval


def squares_of_selection(layer: Layer, gradient: Tensor) -> Vector:
    """||g_c||² of each selected channel, `(n,)` in float64, of a gradient in the form that a slot applies.

    No storage is made at dispatch level, so a step measures the same with and without. Where numpy can not read the
    gradient (another device, bfloat16) torch reduces it, unseen: `(n,)` norms and workspace, freed at once.
    """
    owns_rows = layer.kind in ("grouped", "depthwise")
    axis = 0 if owns_rows or layer.kind in ("transposed", "norm") else 1
    rows = layer.out_channels // layer.groups if owns_rows else 1
    axes = list(range(gradient.dim()))
    squares: Vector
    if gradient.device.type == "cpu" and gradient.dtype in _BY_NUMPY:
        values = gradient.numpy()
        squares = np.einsum(values, axes, values, axes, [axis], dtype=np.float64)
    else:
        with _disable_current_modes():
            others = [a for a in axes if a != axis]
            wide = torch.promote_types(gradient.dtype, torch.float32)
            norms = torch.linalg.vector_norm(gradient, dim=others, dtype=wide) if others else gradient.abs()
            squares = np.square(norms.double().cpu().numpy())
    of_channels: Vector = squares.reshape(-1, rows).sum(axis=1)
    return of_channels


def _like(own: Vector, given: Tensor) -> Vector:
    values: Vector = given.numpy().astype(np.float64)
    if values.shape != own.shape:
        raise ValueError(f"expected {own.shape[0]} numbers, got shape {values.shape}")
    return values
