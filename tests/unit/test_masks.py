"""Bit masks against torch's own derivatives, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from medyate_planner.training import masks
from medyate_planner.training.masks import apply_mask, pack_between

SHAPES = [
    (2, 8),
    (3, 7),
    (1, 1),
    (4,),
    (2, 3, 5),
    (2, 5, 3, 3),
    (3, 8, 4, 2),
    (1, 1, 1, 1),
    (2, 3, 2, 2, 3),
    (2, 16, 4, 4),
]
OPERATORS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float], tuple[float, float]]] = {
    "relu": (torch.relu, (0.0, math.inf), (1.0, 0.0)),
    "relu6": (functional.relu6, (0.0, 6.0), (1.0, 0.0)),
    "hardtanh": (functional.hardtanh, (-1.0, 1.0), (1.0, 0.0)),
    "leaky_relu": (lambda x: functional.leaky_relu(x, 0.25), (0.0, math.inf), (1.0, 0.25)),
}


def sample(shape: tuple[int, ...], dtype: torch.dtype, *, channels_last: bool = False) -> tuple[Tensor, Tensor]:
    """Values on, inside and outside all bounds, and a gradient."""
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator) * 4
    edges = torch.tensor([0.0, -0.0, 6.0, -1.0, 1.0, 5.96875, 1e-3, -1e-3])
    x.view(-1)[: edges.numel()] = edges[: x.numel()]
    gradient = torch.randn(shape, generator=generator)
    x, gradient = x.to(dtype), gradient.to(dtype)
    if channels_last:
        x, gradient = (t.contiguous(memory_format=torch.channels_last) for t in (x, gradient))
    return x, gradient


def by_autograd(operator: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> Tensor:
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    (found,) = torch.autograd.grad(operator(leaf), leaf, gradient)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["relu", "relu6", "hardtanh"])
def test_mask_equals_autograd_bit_for_bit(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    operator, bounds, _ = OPERATORS[name]
    for channels_last in (False, True) if len(shape) == 4 else (False,):
        x, gradient = sample(shape, dtype, channels_last=channels_last)
        found = apply_mask(gradient, pack_between(x, *bounds))
        expected = by_autograd(operator, x, gradient)
        assert found.dtype == expected.dtype == dtype
        assert torch.equal(found, expected)
        assert found.stride() == gradient.stride()


@pytest.mark.parametrize("shape", SHAPES)
def test_mask_with_two_slopes_equals_leaky_relu(shape: tuple[int, ...]) -> None:
    operator, bounds, (inside, outside) = OPERATORS["leaky_relu"]
    x, gradient = sample(shape, torch.float32)
    found = apply_mask(gradient, pack_between(x, *bounds), inside=inside, outside=outside)
    assert torch.equal(found, by_autograd(operator, x, gradient))


def test_mask_with_a_slope_inside_equals_hardsigmoid() -> None:
    x, gradient = sample((3, 7), torch.float32)
    found = apply_mask(gradient, pack_between(x, -3.0, 3.0), inside=1 / 6)
    torch.testing.assert_close(found, by_autograd(functional.hardsigmoid, x, gradient), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_mask_takes_one_bit_per_element_packed_per_sample(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, _ = sample(shape, dtype)
    packed = pack_between(x, 0.0, math.inf)
    per_sample = math.prod(shape[1:])
    assert packed.dtype == torch.uint8
    assert tuple(packed.shape) == (shape[0], (per_sample + 7) // 8)
    assert packed.untyped_storage().nbytes() == shape[0] * ((per_sample + 7) // 8)
    ones = sum(bin(byte).count("1") for byte in packed.view(-1).tolist())
    assert ones == int((x > 0).sum())  # the bits that fill up the last byte are zero


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bounds", [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0)])
def test_numpy_and_torch_pack_the_same_bits(shape: tuple[int, ...], bounds: tuple[float, float]) -> None:
    half, _ = sample(shape, torch.bfloat16)
    assert torch.equal(pack_between(half, *bounds), pack_between(half.float(), *bounds))
    assert torch.equal(pack_between(half, *bounds), pack_between(half.double(), *bounds))


def test_bit_order_by_hand() -> None:
    x = torch.tensor([[1.0, -1, -1, -1, -1, -1, -1, 1, 1, -1]])
    assert pack_between(x, 0.0, math.inf).tolist() == [[0b10000001, 0b10000000]]
    assert pack_between(x.bfloat16(), 0.0, math.inf).tolist() == [[0b10000001, 0b10000000]]


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [5, 8])
@pytest.mark.parametrize("outside", [0.0, 0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_order_of_bits_serves_any_memory_format(
    order: torch.memory_format, channels: int, outside: float, dtype: torch.dtype
) -> None:
    x, gradient = sample((2, channels, 3, 4), dtype)
    expected = by_autograd(lambda value: functional.leaky_relu(value, outside), x, gradient)
    for value in (x, x.contiguous(memory_format=torch.channels_last)):
        packed = pack_between(value, 0.0, math.inf, order)
        for top in (gradient, gradient.contiguous(memory_format=torch.channels_last), gradient.expand(x.shape)):
            found = apply_mask(top, packed, order, outside=outside)
            assert torch.equal(found, expected)
            assert found.stride() == top.stride()


def test_bits_lie_in_the_order_asked_for() -> None:
    x = torch.tensor([[1.0, 1, -1, -1], [-1, -1, -1, 1]]).view(1, 2, 2, 2)  # two channels of four positions
    for value in (x, x.contiguous(memory_format=torch.channels_last)):
        assert pack_between(value, 0.0, math.inf).tolist() == [[0b11000001]]
        assert pack_between(value, 0.0, math.inf, torch.channels_last).tolist() == [[0b10100001]]


def test_gradient_whose_memory_is_shared_is_left_alone() -> None:
    gradient = torch.ones(1, 1).expand(3, 16)
    packed = pack_between(torch.arange(-24.0, 24.0).view(3, 16), 0.0, math.inf)
    assert apply_mask(gradient, packed).sum() == 23
    assert torch.equal(gradient, torch.ones(3, 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_more_elements_than_are_handled_at_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(3, 100_008, generator=generator).mul_(4).to(dtype) for _ in range(2))
    assert x.numel() > 2 * masks._CHUNK
    packed = pack_between(x, 0.0, 6.0)
    assert torch.equal(apply_mask(gradient, packed), by_autograd(functional.relu6, x, gradient))
    scaled = apply_mask(gradient, packed, inside=0.5)  # a power of 2: exact
    assert torch.equal(scaled, by_autograd(functional.relu6, x, gradient) * 0.5)


def test_bounds_that_half_precision_can_not_hold_are_those_of_the_kernel() -> None:
    x = torch.linspace(-0.4, 0.4, 1001).view(1, -1)
    for dtype in (torch.bfloat16, torch.float16):
        value, gradient = x.to(dtype), torch.ones_like(x, dtype=dtype)
        expected = by_autograd(lambda v: functional.hardtanh(v, -0.1, 0.3), value, gradient)
        assert torch.equal(apply_mask(gradient, pack_between(value, -0.1, 0.3)), expected)


def test_value_that_is_not_contiguous() -> None:
    x, gradient = sample((4, 6), torch.float32)
    for value, top in ((x[:, ::2], gradient[:, ::2]), (x.t(), gradient.t()), (x[1:, 1:], gradient[1:, 1:])):
        found = apply_mask(top, pack_between(value, 0.0, math.inf))
        assert torch.equal(found, by_autograd(torch.relu, value.contiguous(), top))


def test_masks_of_fake_tensors_have_the_same_shapes() -> None:
    with FakeTensorMode():
        x = torch.empty(3, 5, 7, 1)
        packed = pack_between(x, 0.0, 6.0)
        assert tuple(packed.shape) == (3, 5)
        assert packed.dtype == torch.uint8
        assert apply_mask(x, packed).shape == x.shape


def test_pack_leaves_its_input_alone() -> None:
    x, gradient = sample((3, 7), torch.float32)
    before, before_gradient = x.clone(), gradient.clone()
    apply_mask(gradient, pack_between(x, 0.0, 6.0), outside=0.5)
    assert torch.equal(x, before)
    assert torch.equal(gradient, before_gradient)


def test_mask_stops_an_infinite_gradient() -> None:
    x, gradient = torch.tensor([[-1.0, 1.0]]), torch.tensor([[math.inf, 1.0]])
    assert torch.equal(apply_mask(gradient, pack_between(x, 0.0, math.inf)), by_autograd(torch.relu, x, gradient))


def test_mask_gives_the_same_sign_of_zero() -> None:
    x, gradient = torch.tensor([[-1.0]]), torch.tensor([[-1.0]])
    found, expected = apply_mask(gradient, pack_between(x, 0.0, math.inf)), by_autograd(torch.relu, x, gradient)
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


def test_mask_passes_a_gradient_through_nan() -> None:
    x, gradient = torch.tensor([[math.nan]]), torch.tensor([[2.0]])
    assert torch.equal(apply_mask(gradient, pack_between(x, 0.0, math.inf)), by_autograd(torch.relu, x, gradient))


def test_slopes_keep_the_type_of_the_gradient() -> None:
    x, gradient = sample((3, 7), torch.bfloat16)
    assert apply_mask(gradient, pack_between(x, -3.0, 3.0), inside=1 / 6).dtype == torch.bfloat16


def test_slopes_are_exact_in_float64() -> None:
    x, gradient = sample((3, 7), torch.float64)
    found = apply_mask(gradient, pack_between(x, 0.0, math.inf), outside=0.01)
    expected = by_autograd(lambda value: functional.leaky_relu(value, 0.01), x, gradient)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)
