"""Update mode `optimizer`: compact parameters of constant shape, for any torch optimizer.

A compact parameter holds the weights of a layer's selected channels. The optimizer steps it; before the next forward
its values are written into the user's own weight, with which the model computes. A layer in full and a bias are stepped
themselves. When channels are redrawn, what the optimizer has of a channel that stays follows it, and what it has of one
that enters begins at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medyate_planner.errors import StepOrderError
from medyate_planner.training.slots import Gradients, Slot

CHANNELS = "medyate_channels"  # in an optimizer's state: the channels that the rest of it belongs to


class CompactSlot(Slot):
    """Hands its layer's gradient to autograd, which accumulates it in the parameters of `parameters`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.compact: nn.Parameter | None = None
        self.channels: tuple[int, ...] = tuple(range(self.quota))
        if self.selects:
            self.compact = nn.Parameter(self.gather())
        self.trained = tuple(self.parameters().values())
        self._same = self._versions()  # of compact parameter and weight when they last had the same values

    def parameters(self) -> dict[str, nn.Parameter]:
        """What an optimizer steps, by the name of the user's own parameter."""
        weight = self.weight if self.full else self.compact
        found: dict[str, nn.Parameter] = {} if weight is None else {self.layer.weight: weight}
        if self.bias is not None and self.layer.bias is not None:
            found[self.layer.bias] = self.bias
        return found

    def synchronise(self) -> None:
        """Bring the user's own weight up to date, or take it over where the user has changed it (loaded another).

        Raises:
            StepOrderError: both have changed.
        """
        if self.compact is None:
            return
        compact, weight = (now != then for now, then in zip(self._versions(), self._same, strict=True))
        if compact and weight:
            raise StepOrderError(
                f"layer {self.layer.name}: the model's weights were changed after a step that they did not know of "
                "yet; call session.write() before changing them"
            )
        if compact:
            self.write()
        elif weight:
            self.read()

    def write(self) -> None:
        """Bring the user's own weight up to date, also where the step left no trace (torch's fused optimizers)."""
        if self.compact is not None:
            self.scatter(self.compact.detach())
            self._same = self._versions()

    def read(self) -> None:
        """Take over the user's own weight."""
        if self.compact is not None:
            with torch.no_grad():
                self.compact.copy_(self.gather())
            self._same = self._versions()

    def _versions(self) -> tuple[int, int]:
        return (-1 if self.compact is None else int(self.compact._version)), int(self.weight._version)

    def begin_step(self) -> None:
        """As `Slot.begin_step`, with the weights of the optimizer's last step, or those that the user has loaded."""
        super().begin_step()
        self.synchronise()

    def version(self) -> object:
        """The selection, and the weights that the forward computed with."""
        return self.selection, int(self.weight._version)

    def check(self, version: object) -> None:
        """Raise `StepOrderError` if the channels or weights have changed between forward and backward."""
        assert isinstance(version, tuple)
        if version[0] != self.selection:
            self._refuse_redrawn()
        if version != self.version():
            raise StepOrderError(
                f"layer {self.layer.name}: its weights were changed between forward and backward; step the optimizer "
                "after the backward of every forward"
            )

    def _take_over(self, channels: list[int]) -> None:
        self.synchronise()
        before, self.channels = self.channels, tuple(channels)
        super()._take_over(channels)
        self.read()
        gradient = self.compact.grad if self.compact is not None else None
        if gradient is not None:
            self.move(gradient, before)

    @torch.no_grad()
    def move(self, values: Tensor, before: Sequence[int]) -> None:
        """Rearrange what belonged, row for row of the compact parameter, to the channels `before`, so that it belongs
        to those selected now; zero for channels that were not there."""
        if tuple(before) == self.channels:
            return
        place = {channel: position for position, channel in enumerate(before)}
        stay = [(new, place[channel]) for new, channel in enumerate(self.channels) if channel in place]
        axis, rows = self._axis_and_rows()
        to = _expand([new for new, _ in stay], rows, values.device)
        kept = values.index_select(axis, _expand([old for _, old in stay], rows, values.device))
        values.zero_()
        values.index_copy_(axis, to, kept)

    def _axis_and_rows(self) -> tuple[int, int]:
        """Along which axis of the compact parameter channels run, and how many rows each has there."""
        if self.layer.kind in ("grouped", "depthwise"):
            return 0, self.layer.out_channels // self.layer.groups
        return self.layer.channel_axis, 1

    def _arranged(self, weight_gradient: Tensor | None) -> Tensor | None:
        """In the parameter's own memory order, else autograd would keep a copy beside it."""
        like = self.weight if self.full else self.compact
        if weight_gradient is None or like is None or _same_order(weight_gradient, like):
            return weight_gradient
        return torch.empty_like(like).copy_(weight_gradient)

    def _complete(self, weight_gradient: Tensor | None, bias_gradient: Tensor | None) -> Gradients:
        of_weight = (weight_gradient,) if self.trains_weight else ()
        return of_weight if self.bias is None else (*of_weight, bias_gradient)


def _same_order(a: Tensor, b: Tensor) -> bool:
    """Equal strides, dimensions of size 1 aside: then autograd takes a gradient over instead of copying it."""
    return all(n == 1 or s == t for n, s, t in zip(a.shape, a.stride(), b.stride(), strict=True))


def _expand(positions: list[int], rows: int, device: torch.device) -> Tensor:
    """Positions of channels as those of their rows."""
    index = torch.tensor(positions, dtype=torch.int64, device=device)
    return index if rows == 1 else (index.unsqueeze(1) * rows + torch.arange(rows, device=device)).view(-1)
