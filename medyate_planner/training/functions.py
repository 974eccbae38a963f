"""Calling autograd functions, and being called back, with as little Python as a step of small operators deserves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def direct(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """`function.apply` without its preparations for functorch, of which planned training has no use (about 1.5 us).

    Limits: torch.compile does not know it.
    """
    found: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return found


def backward_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """`once_differentiable`, free where nothing is recorded, which is everywhere but under `create_graph` (2 us)."""
    guarded = once_differentiable(backward)

    def run(ctx: Any, *gradients: Tensor) -> Any:
        return guarded(ctx, *gradients) if torch.is_grad_enabled() else backward(ctx, *gradients)

    return run
