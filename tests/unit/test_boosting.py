"""Boosting: the moving average by hand, what is seen of each kind of layer against autograd, the state."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from medyate_planner import plan
from medyate_planner.api import open_session, planned_draws
from medyate_planner.errors import DivergenceError, InputError
from medyate_planner.graph import Layer
from medyate_planner.importance.energy import Importance, squared_norm_per_channel
from medyate_planner.planning.plan import Plan, PlannedLayer, Sampling
from medyate_planner.subject import Subject, subject_of
from medyate_planner.training.boosting import Boosting, squares_of_selection
from medyate_planner.training.fused import FusedSlot
from medyate_planner.training.session import Session
from medyate_planner.training.slots import Slot, UpdateRule

METRICS = ("raw", "rgn", "lara")


class EveryKind(nn.Module):
    """A layer of every kind, on the way of a sequence of tokens to five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 6)
        self.conv = nn.Conv2d(6, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(16, 12, 3, padding=1, groups=4)
        self.pointwise = nn.Conv2d(12, 10, 1)
        self.up = nn.ConvTranspose2d(10, 6, 3, stride=2)
        self.linear = nn.Linear(6, 7)
        self.layer_norm = nn.LayerNorm(7)
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.tokens(x).permute(0, 3, 1, 2)
        y = self.grouped(self.depthwise(torch.relu(self.norm(self.conv(y)))))
        y = torch.relu(self.up(self.pointwise(y))).mean((2, 3))
        return self.head(torch.tanh(self.layer_norm(self.linear(y))))


KINDS = {"tokens", "conv", "norm", "depthwise", "grouped", "pointwise", "up", "linear", "layer_norm"}
TOKENS = torch.randint(0, 20, (4, 5, 5), generator=torch.Generator().manual_seed(0))
TARGET = torch.arange(4)


def every_kind(*, dtype: torch.dtype = torch.float32) -> Subject:
    torch.manual_seed(0)
    return subject_of(EveryKind().to(dtype), TOKENS)


def importance_of(subject: Subject, value: float = 1.0) -> Importance:
    energy = {unit.name: np.full(unit.channels, value) for unit in subject.graph.units}
    return Importance(
        energy=energy,
        norms={name: np.sqrt(values) for name, values in energy.items()},
        bias_energy={},
        fingerprint=subject.graph.fingerprint,
        source="test",
    )


def boosted_plan(subject: Subject, *, metric: str = "raw", boost: float = 0.25, **more: object) -> Plan:
    """About half of the channels of every unit, drawn by importance."""
    base = plan(subject, budget=10**9, strategy="full")
    layers = tuple(
        PlannedLayer(name=unit.name, kind=unit.kind, channels=unit.channels, quota=(unit.channels + 1) // 2)
        for unit in subject.graph.units
        if unit.name not in subject.graph.head
    )
    sampling = Sampling(method="weighted", metric=metric, boost=boost, seed=5, **more)  # type: ignore[arg-type]
    heads = tuple(layer for layer in base.layers if layer.head)
    return base.model_copy(update={"layers": layers + heads, "biases": (), "sampling": sampling})


def step(session: Session, x: Tensor = TOKENS) -> None:
    functional.cross_entropy(session(x).float(), TARGET).backward()  # type: ignore[no-untyped-call]


def true_squares(subject: Subject) -> Mapping[str, np.ndarray]:
    """||g_c||² of every channel by PyTorch's autograd on the user's own model, as it is now."""
    model = subject.model.eval()
    required = [parameter.requires_grad for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.requires_grad_()
    functional.cross_entropy(model(TOKENS).float(), TARGET).backward()
    found = {}
    for unit in subject.graph.units:
        gradient = model.get_parameter(unit.weight).grad
        assert gradient is not None
        found[unit.name] = squared_norm_per_channel(unit, gradient)
    for parameter, before in zip(model.parameters(), required, strict=True):
        parameter.grad = None
        parameter.requires_grad_(before)
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_what_is_seen_of_each_kind_is_autograds(dtype: torch.dtype, tolerance: float) -> None:
    subject = every_kind(dtype=dtype)
    expected = true_squares(subject)
    decided = boosted_plan(subject, metric="lara", boost=1.0)
    assert {layer.name for layer in decided.layers if not layer.head} == KINDS
    assert {layer.kind for layer in decided.layers} == {
        "conv", "depthwise", "grouped", "transposed", "linear", "embedding", "norm",
    }  # fmt: skip
    with open_session(subject, decided, importance_of(subject)) as session:
        session.set_lr(0.05, clip=1e-3)  # what is seen is not clipped
        drawn = session.resample(0)
        step(session)
        assert session.boosting is not None
        boosted = session.boosting.importance(1)
    for name, channels in drawn.items():
        others = sorted(set(range(len(expected[name]))) - set(channels))
        np.testing.assert_allclose(boosted[name][channels], expected[name][channels], rtol=tolerance, err_msg=name)
        assert (boosted[name][others] == 1.0).all()
        assert expected[name].max() > 0


@pytest.mark.parametrize("metric", METRICS)
def test_the_moving_average_is_the_one_worked_out_by_hand(metric: str) -> None:
    """Squared norms 4 and 16 in two steps: means 10 (energy) and 3 (norm)."""
    subject = every_kind()
    decided = boosted_plan(subject, metric=metric, boost=0.25)
    boosting = Boosting(decided, importance_of(subject, 9.0))
    drawn = boosting.draw(0)
    boosting.begin(0, drawn)
    slot = slot_of(subject, "linear", drawn["linear"])
    for squared in (4.0, 16.0):
        gradient = torch.zeros(7, len(drawn["linear"]))
        gradient[2] = squared**0.5
        boosting.observe(slot, gradient)
    start = {"raw": 3.0, "rgn": 3.0, "lara": 9.0}[metric]
    seen = {"raw": 10**0.5, "rgn": 3.0, "lara": 10.0}[metric]
    expected = np.full(6, start)
    expected[drawn["linear"]] = 0.75 * start + 0.25 * seen
    np.testing.assert_allclose(boosting.importance(1)["linear"], expected, rtol=1e-14)
    assert (boosting.importance()["linear"] == start).all()
    assert (boosting.importance(1)["conv"] == start).all()  # of which nothing was seen


def test_an_interval_is_applied_once_and_drawn_again_alike() -> None:
    subject = every_kind()
    with open_session(subject, boosted_plan(subject), importance_of(subject)) as session:
        assert session.boosting is not None
        session.set_lr(0.01)
        first = session.resample(0)
        step(session)
        assert session.resample(0) == first  # in the middle of it: nothing is lost, nothing applied
        step(session)
        assert int(session.sampler_state()["steps/conv"]) == 2
        assert (session.boosting.importance()["conv"] == 1.0).all()
        second = session.resample(1)
        applied = session.boosting.importance()
        assert session.resample(1) == second
        session.resample(2)  # nothing was seen in interval 1
        for name, values in session.boosting.importance().items():
            assert (values == applied[name]).all()
            assert ((values != 1.0) == np.isin(np.arange(len(values)), first[name])).all()


def test_the_first_interval_is_drawn_as_planned() -> None:
    subject = every_kind()
    decided = boosted_plan(subject)
    with open_session(subject, decided, importance_of(subject)) as session:
        assert session.resample(0) == planned_draws(decided, importance_of(subject))(0)


def test_a_state_restored_in_the_middle_of_an_interval_goes_on_alike() -> None:
    subject = every_kind()
    decided = boosted_plan(subject)
    weights = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}

    def steps(session: Session, interval: int, count: int) -> dict[str, list[int]]:
        drawn = session.resample(interval)
        for _ in range(count):
            step(session)
        return drawn

    with open_session(subject, decided, importance_of(subject)) as session:
        session.set_lr(0.05)
        steps(session, 0, 2)
        steps(session, 1, 1)
        state = session.sampler_state()
        between = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
        expected = [steps(session, 1, 1), steps(session, 2, 1), steps(session, 3, 0)]
        final = session.sampler_state()
        after = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    subject.model.load_state_dict(between)
    with open_session(subject, decided, importance_of(subject)) as session:
        session.set_lr(0.05)
        session.load_sampler_state(state)
        assert [steps(session, 1, 1), steps(session, 2, 1), steps(session, 3, 0)] == expected
        for name, tensor in session.sampler_state().items():
            assert torch.equal(tensor, final[name]), name
    for name, tensor in subject.model.state_dict().items():
        assert torch.equal(tensor, after[name]), name
    assert any(not torch.equal(after[name], weights[name]) for name in weights)


def test_a_state_that_does_not_fit_is_refused() -> None:
    subject = every_kind()
    with open_session(subject, boosted_plan(subject), importance_of(subject)) as session:
        state = session.sampler_state()
        for wrong, what in (
            ({}, "interval"),
            ({n: t for n, t in state.items() if n != "seen/conv"}, "seen/conv"),
            ({**state, "importance/conv": torch.ones(5, dtype=torch.float64)}, "expected 6 numbers"),
        ):
            with pytest.raises(InputError, match=f"sampler state: does not fit.*{what}"):
                session.load_sampler_state(wrong)
    plain = boosted_plan(subject, boost=0.0)
    with open_session(subject, plain, importance_of(subject)) as session:
        assert session.sampler_state() == {}
        session.load_sampler_state({})
        with pytest.raises(InputError, match="without boosting"):
            session.load_sampler_state(state)


def test_a_start_without_importance_is_refused() -> None:
    subject = every_kind()
    with pytest.raises(InputError, match="boosting needs the importance"):
        open_session(subject, boosted_plan(subject))


def test_a_gradient_that_is_not_finite_is_told_of() -> None:
    subject = every_kind()
    boosting = Boosting(boosted_plan(subject), importance_of(subject))
    drawn = boosting.draw(0)
    boosting.begin(0, drawn)
    boosting.observe(slot_of(subject, "linear", drawn["linear"]), torch.full((7, 3), torch.inf))
    with pytest.raises(DivergenceError, match="linear: a gradient of interval 0 is not finite"):
        boosting.draw(1)


def test_nothing_is_hooked_in_without_boosting() -> None:
    subject = every_kind()
    for sampling in (
        Sampling(method="weighted"),
        Sampling(method="uniform", boost=0.5),
        Sampling(method="static", boost=0.5),
    ):
        decided = boosted_plan(subject).model_copy(update={"sampling": sampling})
        with open_session(subject, decided, importance_of(subject)) as session:
            assert session.boosting is None
            assert session.rule.boost is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_seeing_makes_no_storage(dtype: torch.dtype) -> None:
    layer = Layer(
        name="a", kind="conv", weight="w", weight_shape=(5, 9, 3, 3), dtype="float32", bias=None, groups=1, sites=("a",)
    )
    gradient = torch.randn(5, 4, 3, 3).to(dtype)
    with Dispatched() as seen:
        squares = squares_of_selection(layer, gradient)
    assert set(seen.operators) <= {"aten.detach.default"}  # an alias
    assert squares.dtype == np.float64
    expected = gradient.double().square().sum((0, 2, 3)).numpy()
    np.testing.assert_allclose(squares, expected, rtol=1e-12 if dtype == torch.float32 else 1e-5)


def test_a_fake_gradient_is_passed_over() -> None:
    subject = every_kind()
    boosting = Boosting(boosted_plan(subject), importance_of(subject))
    drawn = boosting.draw(0)
    boosting.begin(0, drawn)
    with FakeTensorMode():
        boosting.observe(slot_of(subject, "linear", drawn["linear"]), torch.zeros(7, 3))
    assert int(boosting.state()["steps/linear"]) == 0


class Dispatched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The operators seen at dispatch level."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.operators.append(str(func))
        return func(*args, **(kwargs or {}))


def slot_of(subject: Subject, name: str, channels: list[int]) -> Slot:
    layer = subject.graph.layer_by_name[name]
    weight = nn.Parameter(torch.zeros(layer.weight_shape))
    slot = FusedSlot(
        layer, weight, None, quota=len(channels), full=False, rule=UpdateRule(), sites=1, anchor=torch.zeros(())
    )
    slot.select(channels)
    return slot
