"""What a user's model and loop may do without getting wrong gradients, broken budgets or a changed model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from medyate_planner import InputError, plan, prepare, rank, verify
from medyate_planner.errors import StepOrderError


class GlobalMaxPool(nn.Module):
    """A window of more than 256 elements, in which a place does not fit into a byte."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.max_pool2d(self.conv(x), 20).flatten(1))


class ThreeOutputs(nn.Module):
    """The loss reads the first output only; the head is called once more for the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.aside = nn.Linear(6, 8), nn.Linear(8, 8)
        self.head, self.auxiliary = nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = torch.relu(self.first(x))
        return self.head(hidden), self.head(torch.sigmoid(self.aside(hidden))), self.auxiliary(hidden.sigmoid())


class InPlace(nn.Module):
    """In-place operators on the three-dimensional results of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x), inplace=True)
        x = self.second(x).add_(x)
        return self.head(functional.silu(x, inplace=True).mean(1))


class ComputedBias(nn.Module):
    """A linear call whose bias is computed by another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bias_of, self.head = nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(3, 3)
        self.weight = nn.Parameter(torch.randn(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        return self.head(functional.linear(hidden, self.weight, self.bias_of(hidden).mean(0)))


class Alias(nn.Module):
    """One module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))


MODELS = [(GlobalMaxPool, (4, 3, 20, 20)), (ThreeOutputs, (4, 6)), (InPlace, (4, 5, 6)), (ComputedBias, (4, 6))]


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


@pytest.mark.parametrize(("make", "shape"), MODELS)
def test_gradients_and_bytes_are_right(make: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x, target = make().eval(), torch.randn(shape), torch.arange(4) % 3
    reference = copy.deepcopy(model)
    decided = plan(model, x, budget="10MB", strategy="full")
    result = verify(model, decided)
    assert result.ok, [category for category in result.categories if not category.agrees]
    with prepare(model, decided) as session:
        session.set_lr(0.1)
        found, expected = session(x), reference(x)
        if isinstance(found, tuple):
            found, expected = found[0], expected[0]
        assert torch.equal(found, expected)
        functional.cross_entropy(found, target).backward()
        functional.cross_entropy(expected, target).backward()
    trained = {layer.name for layer in decided.layers}
    assert len(trained) >= 2
    for (path, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        if path.rsplit(".", 1)[0] in trained:
            torch.testing.assert_close(mine, theirs - 0.1 * theirs.grad, rtol=1e-5, atol=1e-6)  # type: ignore[operator]
        else:
            assert torch.equal(mine, theirs)


def test_a_head_that_is_called_for_an_unread_output_too_is_trained_in_full() -> None:
    decided = plan(ThreeOutputs(), torch.zeros(4, 6), budget="10MB", strategy="full")
    assert [(layer.name, layer.head) for layer in decided.layers] == [("first", False), ("head", True)]


def test_what_the_user_froze_stays_frozen() -> None:
    model = chain()
    model[0].requires_grad_(False)
    decided = plan(model, torch.zeros(4, 6), budget="10MB", strategy="full")
    assert [layer.name for layer in decided.layers] == ["3", "5"]
    assert decided.biases == ("1", "3")  # 1 is a norm


def test_a_larger_batch_than_planned_is_refused() -> None:
    model = chain()
    with prepare(model, plan(model, torch.zeros(4, 6), budget="10MB")) as session:
        for wrong in (torch.zeros(8, 6), torch.zeros(4, 7)):
            with pytest.raises(InputError, match="plan again"):
                session(wrong)
        session(torch.zeros(3, 6))


def test_a_second_backward_is_refused() -> None:
    model = chain()
    with prepare(model, plan(model, torch.zeros(4, 6), budget="10MB")) as session:
        loss = session(torch.randn(4, 6)).sum()
        loss.backward(retain_graph=True)
        with pytest.raises(StepOrderError, match="second backward"):
            loss.backward()


def test_evaluating_leaves_running_statistics_alone_even_after_train() -> None:
    model = chain()
    before = copy.deepcopy(model.state_dict())
    with prepare(model, plan(model, torch.zeros(4, 6), budget="10MB")) as session:
        model.train()
        session.eval()(torch.randn(4, 6))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_failed_prepare_leaves_the_model_as_it_was() -> None:
    model = chain().train()
    decided = plan(model, torch.zeros(4, 6), budget="10MB")
    weighted = decided.model_copy(update={"sampling": decided.sampling.model_copy(update={"method": "weighted"})})
    partial = tuple(la if la.head else la.model_copy(update={"quota": 2}) for la in decided.layers)
    with pytest.raises(InputError, match="importance"):
        prepare(model, weighted.model_copy(update={"layers": partial}))
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())


def test_ranking_leaves_gradients_and_weights_and_understands_aliases() -> None:
    torch.manual_seed(0)
    model, x = Alias(), torch.randn(4, 6)
    model(x).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    weights = copy.deepcopy(model.state_dict())
    found = rank(
        model, lambda _epoch: [(x, torch.arange(4) % 3)] * 2, example_inputs=x, steps_per_epoch=2, warm_head_epochs=1
    )
    assert all((values > 0).any() for values in found.energy.values())
    assert set(found.head) == {"head.weight", "head.bias"}
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_whole_feature_maps_are_dropped_where_the_model_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(288, 3))
    x = torch.randn(4, 3, 8, 8)
    decided = plan(model, x, budget="1MB", strategy="full", dropout="keep")
    assert verify(model, decided, seed=1).ok
    with prepare(model, decided) as session:
        torch.manual_seed(3)
        found = session(x)
    torch.manual_seed(3)
    assert torch.equal(found, model.train()(x))
