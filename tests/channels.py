"""What a channel of a layer is, written from its definition (DESIGN section 2) and not from the package's code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medyate_planner.graph import Layer


def places(layer: Layer, channel: int) -> tuple[Any, ...]:
    """Index of a channel's elements in the whole weight."""
    if layer.kind in ("transposed", "norm"):
        return (channel,)
    if layer.kind in ("linear", "embedding"):
        return (slice(None), channel)
    group, column = divmod(channel, layer.weight_shape[1])  # a convolution: its filters are (C_out, C_in / G, ...)
    rows = layer.weight_shape[0] // layer.groups
    return (slice(group * rows, (group + 1) * rows), column)


def mask_of(layer: Layer, channels: Sequence[int]) -> Tensor:
    """True where the weight belongs to one of the channels."""
    mask = torch.zeros(layer.weight_shape, dtype=torch.bool)
    for channel in channels:
        mask[places(layer, channel)] = True
    return mask


def sliced(layer: Layer, whole: Tensor, channels: Sequence[int]) -> Tensor:
    """The part of a weight, or of its gradient, that belongs to these channels, in the form that a session shows."""
    parts = [whole[places(layer, channel)] for channel in channels]
    if layer.kind in ("transposed", "norm"):
        return torch.stack(parts)
    if layer.kind == "depthwise":
        return torch.cat(parts).unsqueeze(1)
    return torch.cat(parts) if layer.kind == "grouped" else torch.stack(parts, dim=1)


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters, under each of their names."""
    return dict(model.named_parameters(remove_duplicate=False))


def relative(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||; where nothing is expected, the largest that was found."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert torch.isfinite(found).all()
    norm = float(expected.double().norm())
    return float((found.double() - expected.double()).norm()) / norm if norm else float(found.abs().max())


def assert_gradient(
    name: str,
    found: Tensor,
    by_autograd: Tensor,
    true: Callable[[], Tensor],
    *,
    computed_in: torch.dtype | None = None,
) -> None:
    """It is autograd's: to 1e-5 in float32, to 2e-2 in bfloat16 (`computed_in`, where that is not the gradient's type).

    PyTorch 2.13 sums the gradients of a LayerNorm's parameters in bfloat16 on the CPU, and is up to 79 % off. So in
    bfloat16 ours may instead be nearer to the true gradient, which is `true()`, in float64, than autograd's is.
    """
    computed_in = computed_in or found.dtype
    if relative(found, by_autograd) <= {torch.float32: 1e-5, torch.bfloat16: 2e-2}[computed_in]:
        return
    assert computed_in == torch.bfloat16, name
    assert relative(found.double(), true()) < relative(by_autograd.double(), true()), name
