"""Compact slots and what follows them, by hand: which elements a parameter holds, and what moves when they change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from channels import mask_of, sliced
from torch import Tensor, nn

from medyate_planner.errors import InputError, StepOrderError
from medyate_planner.graph import Layer
from medyate_planner.training.compact import CompactSlot
from medyate_planner.training.following import Following, state_tensors
from medyate_planner.training.slots import UpdateRule

KINDS: dict[str, tuple[str, tuple[int, ...], int]] = {
    "conv": ("conv", (5, 6, 3, 3), 1),
    "conv1d": ("conv", (5, 6, 3), 1),
    "conv3d": ("conv", (2, 6, 1, 2, 2), 1),
    "depthwise": ("depthwise", (6, 1, 3, 3), 6),
    "multiplier": ("depthwise", (12, 1, 3, 3), 6),
    "grouped": ("grouped", (4, 3, 3, 3), 2),
    "transposed": ("transposed", (6, 4, 2, 2), 1),
    "transposed, depthwise": ("transposed", (6, 2, 2, 2), 6),
    "addmm": ("transposed", (6, 4), 1),
    "linear": ("linear", (4, 6), 1),
    "embedding": ("embedding", (9, 6), 1),
    "norm": ("norm", (6,), 1),
}
BEFORE, AFTER = [0, 2, 3], [2, 3, 5]  # 0 leaves, 2 and 3 stay at another place, 5 enters
all_kinds = pytest.mark.parametrize("kind", KINDS)


def layer_of(kind: str) -> Layer:
    name, shape, groups = KINDS[kind]
    return Layer(
        name="a", kind=name, weight="a.weight", weight_shape=shape, dtype="float32", bias="a.bias", groups=groups,
        sites=("a",),
    )  # type: ignore[arg-type]  # fmt: skip


def slot_of(kind: str, **options: Any) -> CompactSlot:
    """A slot of 3 channels of 6, with a bias; the weight's elements are all different."""
    layer = layer_of(kind)
    weight = torch.arange(1, 1 + layer.weight_elements, dtype=torch.float32).view(layer.weight_shape)
    if options.pop("channels_last", False):
        weight = weight.contiguous(memory_format=torch.channels_last)
    facts: dict[str, Any] = {"quota": 3, "full": False, "rule": UpdateRule(), "sites": 1, **options}
    bias = nn.Parameter(torch.zeros(layer.out_channels))
    return CompactSlot(layer, nn.Parameter(weight, requires_grad=False), bias, **facts)


def selected(kind: str, whole: Tensor, channels: list[int]) -> Tensor:
    return sliced(layer_of(kind), whole, channels)


@all_kinds
def test_the_parameter_holds_the_selected_channels_and_writing_changes_no_others(kind: str) -> None:
    slot = slot_of(kind)
    before = slot.weight.detach().clone()
    parameter = slot.parameters()["a.weight"]
    assert list(slot.parameters()) == ["a.weight", "a.bias"]
    assert slot.parameters()["a.bias"] is slot.bias
    assert torch.equal(parameter, selected(kind, before, [0, 1, 2]))
    slot.select(list(reversed(BEFORE)))
    assert slot.parameters()["a.weight"] is parameter
    assert torch.equal(parameter, selected(kind, before, BEFORE))
    with torch.no_grad():
        parameter.mul_(2)
    slot.write()
    expected = torch.where(mask_of(slot.layer, BEFORE), 2 * before, before)
    assert torch.equal(slot.weight, expected)
    with torch.no_grad():
        parameter.add_(1)  # not written yet: a redraw must not lose it
    slot.select(AFTER)
    expected = torch.where(mask_of(slot.layer, BEFORE), expected + 1, expected)
    assert torch.equal(slot.weight, expected)
    assert torch.equal(parameter, selected(kind, expected, AFTER))


@all_kinds
def test_what_belongs_to_channels_moves_with_them_and_is_zero_for_those_that_enter(kind: str) -> None:
    slot = slot_of(kind)
    whole = torch.rand(slot.weight.shape) + 1
    slot.select(BEFORE)
    for channels in (AFTER, BEFORE, [1, 4, 5]):
        values = selected(kind, whole, BEFORE)
        slot.select(channels)
        slot.move(values, BEFORE)
        stays = [c for c in channels if c in BEFORE]
        assert torch.equal(values, selected(kind, whole * mask_of(slot.layer, stays), channels)), channels


@all_kinds
def test_a_gradient_that_waits_moves_with_its_channels(kind: str) -> None:
    slot = slot_of(kind)
    slot.select(BEFORE)
    whole = torch.rand(slot.weight.shape) + 1
    parameter = slot.parameters()["a.weight"]
    parameter.grad = selected(kind, whole, BEFORE)
    slot.select(AFTER)
    assert torch.equal(parameter.grad, selected(kind, whole * mask_of(slot.layer, [2, 3]), AFTER))


@pytest.mark.parametrize(
    "options", [{"full": True, "quota": 0}, {"quota": 0}, {"quota": 6}], ids=["in full", "bias alone", "all channels"]
)
def test_what_is_stepped_itself(options: dict[str, Any]) -> None:
    slot = slot_of("conv", **options)
    parameters = slot.parameters()
    assert parameters["a.bias"] is slot.bias
    if options.get("full"):
        assert parameters["a.weight"] is slot.weight
        assert slot.index is None
    elif options["quota"]:
        assert parameters["a.weight"] is not slot.weight
        assert torch.equal(parameters["a.weight"], slot.weight)
        slot.select([0, 1, 2, 3, 4, 5])
        with pytest.raises(InputError, match="expected 6 distinct channels below 6"):
            slot.select([0, 1, 2])
    else:
        assert list(parameters) == ["a.bias"]
    slot.begin_step()
    slot.write()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_gradients_arrive_in_the_order_of_the_parameter_and_are_summed_over_sites(
    full: bool, channels_last: bool
) -> None:
    """Autograd takes a gradient over only if its strides are the parameter's: else a copy would live beside it."""
    slot = slot_of("conv", full=full, sites=2, channels_last=channels_last)
    slot.begin_step()
    parameter = slot.parameters()["a.weight"]
    first = torch.rand(parameter.shape).contiguous(memory_format=torch.channels_last)
    second, bias = torch.rand(parameter.shape), torch.ones(5)
    expected = first + second
    assert slot.receive(first, bias.clone()) == (None, None)
    arrived, of_bias = slot.receive(second, bias.clone())
    assert arrived is not None
    assert torch.equal(arrived, expected)
    assert arrived.stride() == parameter.stride()
    assert of_bias is not None
    assert torch.equal(of_bias, 2 * bias)


def test_a_forward_without_a_step_before_it_leaves_earlier_forwards_valid() -> None:
    slot = slot_of("linear")
    slot.select(BEFORE)
    slot.begin_step()
    version = slot.version()
    slot.begin_step()  # a second forward before the first one's backward
    slot.check(version)
    with torch.no_grad():
        slot.parameters()["a.weight"].add_(1)
    slot.begin_step()
    with pytest.raises(StepOrderError, match=r"layer a: .* step the optimizer after the backward of every forward"):
        slot.check(version)
    version = slot.version()
    slot.select(BEFORE)
    with pytest.raises(StepOrderError, match=r"layer a: channels were redrawn .*resample\(\) between steps"):
        slot.check(version)


def test_following_serves_its_own_parameters_and_no_others() -> None:
    slot, stranger = slot_of("conv"), nn.Parameter(torch.ones(3))
    slot.select(BEFORE)
    following = Following([slot])
    whole_bias = slot.bias
    assert whole_bias is not None
    parameter = slot.parameters()["a.weight"]
    optimizer = torch.optim.SGD([stranger, parameter, whole_bias], lr=1.0, momentum=0.5)
    for given in (stranger, parameter, whole_bias):
        given.grad = torch.ones_like(given)
    before = slot.weight.detach().clone()
    optimizer.step()
    assert torch.equal(slot.weight, before - mask_of(slot.layer, BEFORE).float())
    assert [given.grad is None for given in (stranger, parameter, whole_bias)] == [False, True, True]
    tensors = state_tensors(optimizer)
    assert [tuple(tensor.shape) for tensor in tensors] == [(3,), tuple(parameter.shape), (5,)]
    following.stop()
    for given in (parameter, whole_bias):
        given.grad = torch.ones_like(given)
    written = slot.weight.detach().clone()
    optimizer.step()
    assert torch.equal(slot.weight, written)
    assert parameter.grad is not None


@all_kinds
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW], ids=["momentum", "adamw"])
def test_following_moves_the_state_before_the_next_step(kind: str, make: Any) -> None:
    slot = slot_of(kind)
    slot.select(BEFORE)
    following = Following([slot])
    parameter = slot.parameters()["a.weight"]
    options = {"momentum": 0.5} if make is torch.optim.SGD else {"betas": (0.5, 0.5)}
    optimizer = make([parameter], lr=0.1, weight_decay=0.0, **options)
    whole = torch.rand(slot.weight.shape) + 1
    key = "momentum_buffer" if make is torch.optim.SGD else "exp_avg"
    share = 1.0 if make is torch.optim.SGD else 0.5
    parameter.grad = selected(kind, whole, BEFORE)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[parameter][key], selected(kind, share * whole, BEFORE))
    for channels in ([1, 4, 5], AFTER):  # twice without a step in between
        slot.select(channels)
    parameter.grad = selected(kind, whole, AFTER)
    optimizer.step()
    total = share * whole + 0.5 * share * whole * mask_of(slot.layer, [2, 3])
    torch.testing.assert_close(optimizer.state[parameter][key], selected(kind, total, AFTER))
    following.stop()


def test_following_drops_a_state_that_does_not_run_over_channels() -> None:
    slot = slot_of("linear")
    slot.select(BEFORE)
    following = Following([slot])
    parameter = slot.parameters()["a.weight"]
    optimizer = torch.optim.Adafactor([parameter], lr=0.1)

    def step() -> float:
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        return float(optimizer.state[parameter]["step"])

    assert [step(), step()] == [1, 2]
    slot.select(BEFORE)  # the same again: nothing is dropped
    assert step() == 3
    slot.select(AFTER)
    assert step() == 1
    following.stop()
