"""Slots against torch.optim.SGD on a masked copy of the same layer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from medyate_planner.errors import InputError, StepOrderError
from medyate_planner.graph import Layer
from medyate_planner.training.fused import FusedSlot
from medyate_planner.training.slots import Slot, UpdateRule

LR, STEPS = 0.1, 3
CASES: dict[str, tuple[str, tuple[int, ...], int, list[int]]] = {
    "conv": ("conv", (5, 4, 3, 3), 1, [1, 3]),
    "conv-all": ("conv", (5, 4, 1, 1), 1, [0, 1, 2, 3]),
    "conv1d": ("conv", (5, 4, 3), 1, [2]),
    "depthwise": ("depthwise", (4, 1, 3, 3), 4, [0, 2, 3]),
    "multiplier": ("depthwise", (8, 1, 3, 3), 4, [1, 3]),
    "grouped": ("grouped", (6, 2, 3, 3), 3, [0, 3, 4, 5]),
    "grouped-narrow": ("grouped", (2, 3, 1, 1), 2, [2, 3]),
    "linear": ("linear", (3, 6), 1, [0, 4, 5]),
}


@pytest.fixture(autouse=True)
def _as_in_backward() -> Iterator[None]:
    """Slots receive gradients where autograd records nothing."""
    with torch.no_grad():
        yield


def layer_of(kind: str, shape: tuple[int, ...], groups: int) -> Layer:
    return Layer(
        name="a",
        kind=kind,
        weight="a.weight",
        weight_shape=shape,
        dtype="float32",
        bias="a.bias",
        groups=groups,
        sites=("a",),
    )  # type: ignore[arg-type]


def belongs(layer: Layer, channel: int) -> tuple[slice, int]:
    """Rows and column of the weight that one input channel owns, from the definition of a grouped convolution."""
    rows = layer.weight_shape[0] // layer.groups
    group, column = divmod(channel, layer.weight_shape[1])
    return slice(group * rows, (group + 1) * rows), column


def sliced(layer: Layer, gradient: Tensor, channels: list[int]) -> Tensor:
    """The slice in the form that the sites hand over."""
    parts = [gradient[belongs(layer, c)] for c in channels]
    if layer.kind == "grouped":
        return torch.cat(parts)
    if layer.kind == "depthwise":
        return torch.cat(parts).unsqueeze(1)
    return torch.stack(parts, dim=1)


def mask_of(layer: Layer, channels: list[int]) -> Tensor:
    mask = torch.zeros(layer.weight_shape, dtype=torch.bool)
    for channel in channels:
        mask[belongs(layer, channel)] = True
    return mask


@torch.enable_grad()  # type: ignore[untyped-decorator]
def test_belongs_is_what_a_convolution_reads() -> None:
    """The oracle's own check: a channel's slice is where the weight gradient is not zero if the others are silent."""
    for kind, shape, groups, _ in CASES.values():
        if kind == "linear" or len(shape) != 4:
            continue
        layer = layer_of(kind, shape, groups)
        for channel in range(shape[1] * groups):
            x = torch.zeros(1, shape[1] * groups, 5, 5)
            x[:, channel] = 1.0
            weight = torch.ones(shape, requires_grad=True)
            (gradient,) = torch.autograd.grad(functional.conv2d(x, weight, groups=groups).sum(), weight)
            assert torch.equal(gradient != 0, mask_of(layer, [channel])), (kind, channel)


@pytest.mark.parametrize("clip", [None, 0.5, 100.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_slot_updates_as_sgd_does(name: str, with_bias: bool, weight_decay: float, clip: float | None) -> None:
    kind, shape, groups, channels = CASES[name]
    layer = layer_of(kind, shape, groups)
    torch.manual_seed(1)
    weight, bias = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(shape[0]))
    before, before_bias = weight.detach().clone(), bias.detach().clone()
    mask = mask_of(layer, channels)
    compact = nn.Parameter(weight.detach()[mask].clone())
    other_bias = nn.Parameter(bias.detach().clone())
    groups_of = [{"params": [compact], "weight_decay": weight_decay}, {"params": [other_bias], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups_of if with_bias else groups_of[:1], lr=LR)
    rule = UpdateRule(lr=LR, weight_decay=weight_decay, clip=clip)
    slot = FusedSlot(
        layer,
        weight,
        bias if with_bias else None,
        quota=len(channels),
        full=False,
        rule=rule,
        sites=1,
        anchor=torch.zeros(()),
    )
    slot.select(list(reversed(channels)))
    for _ in range(STEPS):
        gradient, bias_gradient = torch.randn(shape), torch.randn(shape[0])
        compact.grad = gradient[mask].clone()
        other_bias.grad = bias_gradient.clone() if with_bias else None
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([compact, other_bias], clip)
        optimizer.step()
        slot.begin_step()
        slot.receive(sliced(layer, gradient, channels), bias_gradient.clone() if with_bias else None)
    torch.testing.assert_close(weight.detach()[mask], compact.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(bias.detach(), other_bias.detach(), rtol=1e-6, atol=1e-6)
    assert torch.equal(weight.detach()[~mask], before[~mask])
    assert with_bias or torch.equal(bias.detach(), before_bias)
    assert weight.grad is None
    assert not torch.equal(weight.detach(), before)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("weight_decay", "clip"), [(0.0, None), (0.3, 0.5)])
def test_full_slot_updates_as_sgd_does(name: str, weight_decay: float, clip: float | None) -> None:
    kind, shape, groups, _ = CASES[name]
    torch.manual_seed(1)
    weight, bias = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(shape[0]))
    twin, twin_bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
    optimizer = torch.optim.SGD(
        [{"params": [twin], "weight_decay": weight_decay}, {"params": [twin_bias], "weight_decay": 0.0}], lr=LR
    )
    rule = UpdateRule(lr=LR, weight_decay=weight_decay, clip=clip)
    slot = FusedSlot(
        layer_of(kind, shape, groups), weight, bias, quota=0, full=True, rule=rule, sites=1, anchor=torch.zeros(())
    )
    assert slot.index is None
    assert slot.trains_weight
    for _ in range(STEPS):
        twin.grad, twin_bias.grad = torch.randn(shape), torch.randn(shape[0])
        parts = twin.grad.clone(), twin_bias.grad.clone()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([twin, twin_bias], clip)
        optimizer.step()
        slot.begin_step()
        slot.receive(*parts)
    torch.testing.assert_close(weight.detach(), twin.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(bias.detach(), twin_bias.detach(), rtol=1e-6, atol=1e-6)


def slot_of(**options: object) -> Slot:
    weight, bias = nn.Parameter(torch.zeros(2, 4)), nn.Parameter(torch.zeros(2))
    facts: dict[str, object] = {
        "quota": 2,
        "full": False,
        "rule": UpdateRule(lr=1.0),
        "sites": 1,
        "anchor": torch.zeros(()),
        **options,
    }
    return FusedSlot(layer_of("linear", (2, 4), 1), weight, bias, **facts)  # type: ignore[arg-type]


def test_slot_of_several_sites_applies_their_sum_once_after_the_last() -> None:
    seen: list[Tensor] = []
    rule = UpdateRule(lr=1.0, tap=lambda _slot, weight, _bias: seen.append(weight.clone()))
    slot = slot_of(sites=3, rule=rule)
    parts = [torch.full((2, 2), float(n)) for n in (1, 2, 4)]
    for part in parts[:2]:
        slot.receive(part, torch.ones(2))
        assert not slot.weight.any()
    slot.receive(parts[2], torch.ones(2))
    assert slot.weight.tolist() == [[-7.0, -7.0, 0.0, 0.0]] * 2
    assert slot.bias is not None
    assert slot.bias.tolist() == [-3.0, -3.0]
    assert [gradient.tolist() for gradient in seen] == [[[7.0, 7.0]] * 2]
    with pytest.raises(StepOrderError, match="second backward"):
        slot.receive(torch.ones(2, 2), None)
    slot.begin_step()
    slot.receive(torch.ones(2, 2), None)
    with pytest.raises(StepOrderError, match="1 of its 3 call sites"):
        slot.begin_step()  # a backward that did not reach all sites is told, and leaves nothing behind
    slot.begin_step()
    for _ in range(3):
        slot.receive(torch.ones(2, 2), None)
    assert slot.weight.tolist() == [[-10.0, -10.0, 0.0, 0.0]] * 2


def test_slot_of_a_bias_alone_has_no_index() -> None:
    slot = slot_of(quota=0)
    assert slot.index is None
    assert not slot.trains_weight
    slot.receive(None, torch.ones(2))
    assert slot.bias is not None
    assert slot.bias.tolist() == [-1.0, -1.0]
    assert not slot.weight.any()


def test_slot_without_a_learning_rate_changes_nothing_but_still_taps() -> None:
    seen: list[int] = []
    slot = slot_of(rule=UpdateRule(lr=0.0, weight_decay=1.0, tap=lambda *_: seen.append(1)))
    slot.receive(torch.ones(2, 2), torch.ones(2))
    assert not slot.weight.any()
    assert seen == [1]


def test_slot_shows_every_gradient_to_observers_and_every_selection_to_theirs() -> None:
    gradients: list[tuple[Tensor, bool]] = []
    compacts: list[Tensor] = []
    rule = UpdateRule(
        lr=1.0, observers=[lambda g, first: gradients.append((g, first))], selection_observers=[compacts.append]
    )
    slot = slot_of(rule=rule)
    x = torch.ones(3, 2)
    assert slot.keep(x) is x
    weight, bias = torch.ones(2, 2), torch.ones(2)
    slot.receive(weight, bias)
    assert [(id(g), first) for g, first in gradients] == [(id(weight), True), (id(bias), True)]
    assert [id(c) for c in compacts] == [id(x)]


def test_select_sorts_in_place_and_counts() -> None:
    slot = slot_of()
    index = slot.index
    assert index is not None
    assert index.dtype == torch.int32
    slot.select([3, 1])
    assert slot.index is index
    assert index.tolist() == [1, 3]
    assert slot.selection == 1
    slot.check(1)
    with pytest.raises(StepOrderError, match=r"layer a: channels were redrawn .*resample\(\)"):
        slot.check(0)


@pytest.mark.parametrize("channels", [[1], [0, 1, 2], [1, 1], [0, 4], [-1, 0], []])
def test_select_refuses_and_keeps_the_old_channels(channels: list[int]) -> None:
    slot = slot_of()
    with pytest.raises(InputError, match="layer a: expected 2 distinct channels below 4") as caught:
        slot.select(channels)
    assert str(channels) in caught.value.message
    assert slot.index is not None
    assert slot.index.tolist() == [0, 1]
    assert slot.selection == 0


def rows_by_definition(shape: tuple[int, ...], groups: int, channels: list[int]) -> list[tuple[int, int]]:
    layer = layer_of("grouped", shape, groups)
    found = []
    for channel in channels:
        rows, column = belongs(layer, channel)
        found += [(row, column) for row in range(rows.start, rows.stop)]
    return found


@pytest.mark.parametrize(
    "shape_and_groups", [((6, 2, 1, 1), 3), ((4, 1, 3, 3), 4), ((8, 1, 1, 1), 4), ((4, 4, 1, 1), 2)]
)
def test_rows_and_columns(shape_and_groups: tuple[tuple[int, ...], int]) -> None:
    shape, groups = shape_and_groups
    everything = shape[1] * groups
    for channels in ([0], [everything - 1], [0, everything - 1], list(range(everything))):
        layer = layer_of("grouped", shape, groups)
        slot = FusedSlot(
            layer,
            nn.Parameter(torch.zeros(shape)),
            None,
            quota=len(channels),
            full=False,
            rule=UpdateRule(),
            sites=1,
            anchor=torch.zeros(()),
        )
        slot.select(channels)
        pairs = list(zip(slot.rows().tolist(), slot.columns().tolist(), strict=True))
        assert pairs == rows_by_definition(shape, groups, channels)
