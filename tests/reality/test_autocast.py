"""Training planned under torch.autocast: the values of autocast itself, in the bytes that were predicted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from medyate_planner import InputError, Plan, plan, verify
from medyate_planner.api import open_session, train
from medyate_planner.errors import PlanMismatchError, TraceError
from medyate_planner.importance.energy import from_weights
from medyate_planner.subject import Subject, subject_for, subject_of
from medyate_planner.survey import report
from medyate_planner.trace import trace
from medyate_planner.trace.casts import call_under_autocast, is_cast
from medyate_planner.training.loop import Batches, Recipe

X = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(0))


class Mixed(nn.Module):
    """All that autocast treats its own way: layers, norms, attention, casts, regions, what casts inside itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.grouped, self.groups = nn.Conv2d(8, 8, 3, groups=2), nn.GroupNorm(2, 8)
        self.mix, self.rows, self.ask = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 16)
        self.table = nn.Parameter(torch.randn(16, 16) / 4)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.first(x)))
        x = functional.hardswish(self.groups(self.grouped(x))).mean((2, 3))
        x = self.rows(self.mix(x)).unsqueeze(1)
        q = self.ask(x).view(-1, 1, 2, 8).transpose(1, 2)
        a = functional.scaled_dot_product_attention(q, q, q).transpose(1, 2).reshape(-1, 1, 16)
        shares = torch.softmax(a.float(), -1).to(a.dtype)  # the types of autocast are those that the model sees
        with torch.autocast("cpu", enabled=False):
            exact = a.float() @ self.table
        e = torch.einsum("bij,jk->bik", shares, self.table)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            e = e @ self.table
        return self.head((exact + e).squeeze(1))


def made(autocast: str | None, **options: object) -> tuple[Subject, Plan]:
    subject = subject_of(Mixed().eval(), X, autocast=autocast, **options)  # type: ignore[arg-type]
    return subject, plan(subject, None, "60kB", request={"buy_norm_scales": True})


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_outputs_are_those_of_autocast(autocast: str | None) -> None:
    """Without it, the region that switches it on is in the graph all the same."""
    subject, decided = made(autocast)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast is not None), torch.no_grad():
        expected = subject.model(X)
    nodes = subject.traced.module.graph.nodes
    inside = [node.name for node in nodes if node.target is call_under_autocast]
    assert inside == (["einsum"] if autocast else [])
    assert any(is_cast(node) for node in nodes)
    with open_session(subject, decided) as session:
        outputs = session(X)
        assert outputs.dtype == expected.dtype
        assert torch.equal(outputs, expected)
        evaluated = session.eval()(X)
    assert torch.equal(evaluated, expected)


@pytest.mark.parametrize("norm", ["frozen", "train"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_bytes_agree_in_three_ways(norm: str, optimizer: str) -> None:
    subject = subject_of(Mixed(), X, autocast="bfloat16", norm=norm)
    asked = {} if optimizer == "sgd" else {"update": "optimizer", "optimizer": optimizer}
    decided = plan(subject, None, "60kB", request={"buy_norm_scales": True}, **asked)
    assert decided.autocast == "bfloat16"
    result = verify(subject.under(decided.mode), decided)
    assert not [category for category in result.categories if not category.agrees]
    assert result.within_budget


def test_activations_take_half_the_bytes_and_gradients_as_many() -> None:
    class Plain(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(512, 5))

    plain, cast = (subject_of(Plain(), X, autocast=a).memory for a in (None, "bfloat16"))
    for name in ("0", "2"):
        assert cast.costs[name].gradient_bytes == plain.costs[name].gradient_bytes
        assert 2 * cast.costs[name].saved_bytes == plain.costs[name].saved_bytes


def test_a_plan_brings_its_autocast_with_it() -> None:
    _, decided = made("bfloat16")
    again = Plan.from_dict(decided.to_dict())
    subject = subject_for(Mixed(), again)
    assert subject.autocast == "bfloat16"
    with open_session(subject, again) as session, torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(session(X)).all()  # in a loop that uses autocast itself
    with (
        open_session(subject, again) as session,
        torch.autocast("cpu", dtype=torch.float16),
        pytest.raises(InputError, match="under autocast float16 with a plan made for bfloat16"),
    ):
        session(X)


def test_importance_measured_without_autocast_serves_and_a_subject_without_it_does_not() -> None:
    """Unless the model itself asks for types, as `Mixed` does: then it is another graph."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))
    plain, cast = subject_of(net, X), subject_of(net, X, autocast="bfloat16")
    assert len(plain.graph.ops) < len(cast.graph.ops)
    assert plain.graph.fingerprint == cast.graph.fingerprint
    decided = plan(cast, budget="60kB", importance=from_weights(plain.graph, dict(plain.model.named_parameters())))
    with pytest.raises(PlanMismatchError, match="made under autocast bfloat16, the model was made ready under None"):
        verify(plain, decided)


def test_training_evaluates_under_autocast_too() -> None:
    """As `medyate train` does after each epoch, to the bit."""
    subject, decided = made("bfloat16")
    target = torch.arange(4) % 5
    seen: list[torch.dtype] = []
    handle = subject.model.head.register_forward_hook(lambda _m, _x, out: seen.append(out.dtype))
    batches = Batches(train=lambda _epoch: [(X, target)], test=lambda: [(X, target)], steps_per_epoch=1)
    (epoch,) = train(subject, decided, batches, Recipe(epochs=1))
    handle.remove()
    assert seen == [torch.bfloat16]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = functional.cross_entropy(subject.model(X), target)
    assert epoch.metrics.test_loss == pytest.approx(float(expected), rel=1e-6)


def test_a_report_has_the_plan_under_its_own_autocast() -> None:
    _, decided = made("bfloat16")
    found = {step.name: step for step in report(Mixed(), X, plan=decided).steps}
    assert found["plan"].training_bytes == decided.predicted.training_bytes
    cast = {step.name: step for step in report(Mixed(), X, autocast="bfloat16").steps}
    plain = {step.name: step for step in report(Mixed(), X).steps}
    assert cast["lean_full"].saved_bytes < plain["lean_full"].saved_bytes


class Turned(nn.Module):
    """A norm of an input that is not as its kernel wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(2, 3))


@pytest.mark.parametrize("norms", ["frozen", "train"])
@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.GroupNorm(2, 8), lambda: nn.GroupNorm(2, 8, affine=False), lambda: nn.InstanceNorm2d(8, affine=True),
        lambda: nn.BatchNorm2d(8), lambda: nn.BatchNorm2d(8, affine=False), lambda: nn.LayerNorm((8, 8, 8)),
        lambda: nn.BatchNorm2d(8, track_running_stats=False), lambda: nn.RMSNorm((8, 8, 8)), Turned,
    ],
)  # fmt: skip
@pytest.mark.parametrize("scales", [False, True])
def test_statistics_of_any_norm_are_counted_as_they_are(
    norm: Callable[[], nn.Module], norms: str, scales: bool
) -> None:
    """They are of the wider type where input and parameters are of two, which torch's fake kernels do not know."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), norm(), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.Flatten(), nn.Linear(6 * 64, 5)
    )
    subject = subject_of(net, X, autocast="bfloat16", norm=norms)
    decided = plan(subject, budget="60kB", request={"buy_norm_scales": scales})
    assert not [category for category in verify(subject, decided).categories if not category.agrees]


def test_what_surrounds_planning_changes_nothing() -> None:
    """A user may call everything within an autocast, for a plan with or without one."""
    for autocast in (None, "bfloat16"):
        subject, decided = made(autocast)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside, again = made(autocast)
            assert again == decided
            result = verify(Mixed().eval(), decided)
            assert not [category for category in result.categories if not category.agrees]
            assert [str(node.target) for node in inside.traced.module.graph.nodes] == [
                str(node.target) for node in subject.traced.module.graph.nodes
            ]


class OwnCasts(nn.Module):
    """Parameters that the model itself casts, up and down, beside one bias of another type than its weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.narrow, self.words = nn.Conv2d(3, 8, 3).bfloat16(), nn.Embedding(7, 8)
        self.mixed, self.norm, self.head = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 5)
        self.mixed.bias.data = self.mixed.bias.data.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        x = functional.conv2d(x, self.narrow.weight.float(), self.narrow.bias.float()).mean((2, 3))
        words = functional.embedding(x.argmax(1) % 7, self.words.weight.to(torch.bfloat16)).float()
        x = functional.linear(x + words, self.mixed.weight, self.mixed.bias.float())
        x = functional.layer_norm(x.bfloat16(), (8,), self.norm.weight.bfloat16(), self.norm.bias.bfloat16())
        return self.head(functional.relu(x.float() + functional.relu(self.table())))

    def table(self) -> Tensor:
        return self.words.weight[0]


@pytest.mark.parametrize("mode", [{}, {"update": "optimizer", "optimizer": "adamw"}])
def test_casts_of_the_models_own(mode: dict[str, str]) -> None:
    decided = plan(OwnCasts(), X, budget="60kB", **mode)  # type: ignore[arg-type]
    result = verify(OwnCasts(), decided)
    assert not [category for category in result.categories if not category.agrees]
    measured = next(c.measured_bytes for c in result.categories if c.name == "live peak")
    assert decided.predicted.live_peak_bound_bytes is not None
    assert decided.predicted.live_peak_bound_bytes >= measured
    names = {layer.name for layer in decided.layers}
    assert {"narrow", "mixed"} <= names
    assert "mixed" not in decided.biases


@pytest.mark.parametrize(
    ("autocast", "told"), [("float16", "needs its loss scaled"), ("bf16", "'bf16' is unknown; choose bfloat16")]
)
def test_what_can_not_be_planned_is_refused(autocast: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        trace(Mixed(), X, autocast=autocast)


def test_a_failure_under_autocast_is_told_as_any_other() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean() if x.sum() > 0 else x

    with pytest.raises(TraceError, match="Broken can not be captured"):
        trace(Broken(), X, autocast="bfloat16")
