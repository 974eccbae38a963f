"""Max-pool with a byte per output: the gradient that PyTorch gives, for all windows that it is used with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from medyate_planner.training.passing import MaxPoolSite

# kernel, stride, padding, dilation, ceil_mode
WINDOWS = [
    (2, 2, 0, 1, False),
    (3, 2, 1, 1, False),
    (3, 2, 1, 1, True),
    (3, 1, 1, 1, False),
    ([2, 5], [1, 3], [1, 2], 1, False),
    (3, 2, 1, 2, False),
    ([3, 2], [2, 1], 0, [2, 3], True),
    (7, 7, 0, 1, False),
    (16, 1, 8, 1, False),  # 256 places: all that a byte tells apart
]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_max_pool_equals_autograd(
    window: tuple[object, object, object, object, bool], channels_last: bool, dtype: torch.dtype
) -> None:
    kernel, stride, padding, dilation, ceil_mode = window
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 14, 19, generator=generator).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    site = MaxPoolSite(torch.ops.aten.max_pool2d.default, (kernel, stride, padding, dilation, ceil_mode), False)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = site(mine)
    expected = functional.max_pool2d(theirs, kernel, stride, padding, dilation, ceil_mode)  # type: ignore[arg-type]
    assert torch.equal(found, expected)
    gradient = torch.randn(found.shape, generator=generator).to(dtype)
    found.backward(gradient)
    expected.backward(gradient)
    assert mine.grad is not None
    assert theirs.grad is not None
    worst = 1e-6 if dtype == torch.float32 else 2e-2  # sums of overlapping windows, in another order and precision
    assert float((mine.grad - theirs.grad).norm() / theirs.grad.norm()) <= worst
    assert torch.equal(mine.grad != 0, theirs.grad != 0)


def test_max_pool_keeps_a_byte_for_each_output() -> None:
    kept: list[Tensor] = []
    site = MaxPoolSite(torch.ops.aten.max_pool2d.default, (3, 2, 1), False)
    x = torch.randn(2, 3, 9, 9, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = site(x)
    assert [t.untyped_storage().nbytes() for t in kept] == [out.numel()]
