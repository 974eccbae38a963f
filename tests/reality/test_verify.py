"""I1, I2, I8: closed form = dry run = real step, to the byte, per category, for every network, batch and budget."""

from __future__ import annotations

import pytest
from networks import all_networks, subject

from medyate_planner import InfeasibleBudgetError, plan, verify
from medyate_planner.memory.model import Updates
from medyate_planner.memory.timeline import footprint


def budgets_of(made: object, scope: str) -> tuple[int, int, int]:
    """The smallest budget that can be met, a binding one, and one in which everything fits."""
    with pytest.raises(InfeasibleBudgetError) as caught:
        plan(made, budget=1, request={"scope": scope})  # type: ignore[arg-type]
    smallest = caught.value.minimum_bytes
    graph = made.graph  # type: ignore[attr-defined]
    everything = Updates(
        quotas={layer.name: layer.channels for layer in graph.layers if layer.name not in graph.head},
        biases=frozenset(layer.name for layer in graph.layers if layer.bias and layer.name not in graph.head),
        full=frozenset(graph.head),
    )
    figures = footprint(made.memory, everything)  # type: ignore[attr-defined]
    largest = figures.update_bytes if scope == "update" else figures.training_bytes
    return smallest, smallest + (largest - smallest) // 6, largest


@all_networks
@pytest.mark.parametrize("batch_size", [1, 8])
def test_verify_finds_no_difference(network: str, batch_size: int) -> None:
    made = subject(network, batch_size)
    for budget in budgets_of(made, "training"):
        decided = plan(made, budget=budget)
        assert decided.predicted.training_bytes <= budget
        result = verify(made, decided)
        wrong = [category for category in result.categories if not category.agrees]
        assert not wrong, (budget, wrong)
        assert result.ok


@all_networks
def test_update_scope_holds_too(network: str) -> None:
    made = subject(network, 8)
    _, binding, _ = budgets_of(made, "update")
    decided = plan(made, budget=binding, request={"scope": "update"})
    assert decided.predicted.update_bytes <= binding
    result = verify(made, decided)
    assert result.ok, result.categories


@all_networks
def test_the_minimum_is_the_true_one(network: str) -> None:
    made = subject(network, 8)
    smallest, _, _ = budgets_of(made, "training")
    assert plan(made, budget=smallest).predicted.training_bytes <= smallest
    with pytest.raises(InfeasibleBudgetError) as caught:
        plan(made, budget=smallest - 1)
    assert caught.value.minimum_bytes == smallest
