"""Every scope keeps its budget: predicted = dry run = measured and within it; weights in flash and margins too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import networks
import pytest
import torch
from torch import nn

from medyate_planner import InfeasibleBudgetError, Plan, plan, verify
from medyate_planner.planning.request import SCOPES
from medyate_planner.reporting.verification import Verification
from medyate_planner.subject import Subject, subject_of

BATCH = 2
SHARES = (0.02, 0.2, 0.6)  # of the way from the smallest budget that can be met to that of strategy full
ROW_OF_SCOPE = {"update": "update", "training": "training", "peak": "live peak"}


def tiny_convs() -> Subject:
    """Convolutions with a norm, a residual sum and a pool: nothing that the zoo's networks are made of alone."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2))
            self.inner = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.SiLU(), nn.Conv2d(12, 12, 1))
            self.head = nn.Linear(12, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.head((x + self.inner(x)).mean((2, 3)))

    torch.manual_seed(0)
    return subject_of(Residual().eval(), torch.zeros(BATCH, 3, 24, 24))


def small_bert() -> Subject:
    """Embeddings, LayerNorm, GELU and attention."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=101
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).eval()
    return subject_of(model, {"input_ids": torch.zeros(BATCH, 16, dtype=torch.int64)})


MAKERS: Mapping[str, Callable[[], Subject]] = {
    "mcunet-5fps": lambda: networks.subject("mcunet-5fps", BATCH),
    "tiny convolutions": tiny_convs,
    "small BERT": small_bert,
}
all_subjects = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.assets if name in networks.ZOO else ()) for name in MAKERS]
)


@cache
def subject(name: str) -> Subject:
    return MAKERS[name]()


def budgets(made: Subject, **request: Any) -> tuple[int, ...]:
    """Budgets between the smallest that can be met and the one in which everything fits."""
    ends = []
    for strategy in ("optimal", "full"):
        with pytest.raises(InfeasibleBudgetError) as caught:
            plan(made, budget=1, strategy=strategy, request=request)
        ends.append(caught.value.minimum_bytes)
    return tuple(ends[0] + round(share * (ends[1] - ends[0])) for share in SHARES)


def measured(made: Subject, decided: Plan) -> tuple[int, Verification]:
    """What a real step held of what the scope limits, after all categories have been found equal."""
    result = verify(made, decided)
    wrong = [category for category in result.categories if not category.agrees]
    assert not wrong, (decided.budget_bytes, wrong)
    assert result.ok
    row = next(category for category in result.categories if category.name == ROW_OF_SCOPE[decided.scope])
    return row.measured_bytes, result


@all_subjects
@pytest.mark.parametrize("scope", SCOPES)
def test_budget_is_kept_as_predicted_and_measured(name: str, scope: str) -> None:
    made = subject(name)
    for budget in budgets(made, scope=scope):
        decided = plan(made, budget=budget, request={"scope": scope})
        seen, result = measured(made, decided)
        assert seen == decided.used_bytes == result.scope_bytes <= budget
        ceiling = made.peak_bound_bytes(decided.updates()) if scope == "peak" else seen
        assert seen <= ceiling <= budget
        if scope == "peak":
            assert ceiling == decided.predicted.live_peak_bound_bytes
        if name in networks.ZOO:  # a budget that is kept by leaving it unused would be no merit
            assert ceiling >= 0.99 * budget


@all_subjects
def test_weights_in_flash_leave_the_rest_within_budget(name: str) -> None:
    made = subject(name)
    parameters = sum(p.nbytes for p in made.model.parameters())
    buffers = sum(b.nbytes for b in made.model.buffers())
    budget = budgets(made, scope="peak", weights_in="flash")[1]
    decided = plan(made, budget=budget, request={"scope": "peak", "weights_in": "flash"})
    seen, result = measured(made, decided)
    bound = made.peak_bound_bytes(decided.updates())
    assert seen - parameters - buffers == decided.used_bytes == result.scope_bytes
    assert seen <= bound <= budget + parameters + buffers


@all_subjects
@pytest.mark.parametrize("scope", SCOPES)
def test_margin_stays_free(name: str, scope: str) -> None:
    made = subject(name)
    budget = budgets(made, scope=scope, margin_ratio=0.1)[1]
    decided = plan(made, budget=budget, request={"scope": scope, "margin_ratio": 0.1})
    seen, _ = measured(made, decided)
    ceiling = made.peak_bound_bytes(decided.updates()) if scope == "peak" else seen
    assert seen <= ceiling
    assert 11 * ceiling <= 10 * budget


@all_subjects
@pytest.mark.parametrize("scope", SCOPES)
def test_smallest_budget_is_the_true_one(name: str, scope: str) -> None:
    made = subject(name)
    with pytest.raises(InfeasibleBudgetError) as caught:
        plan(made, budget=1, request={"scope": scope})
    smallest = caught.value.minimum_bytes
    seen, _ = measured(made, plan(made, budget=smallest, request={"scope": scope}))
    assert seen <= smallest
    with pytest.raises(InfeasibleBudgetError) as again:
        plan(made, budget=smallest - 1, request={"scope": scope})
    assert again.value.minimum_bytes == smallest
