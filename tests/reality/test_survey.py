"""A whole report: where its peaks are, what it leaves alone, what it refuses in its own words."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import torch
from oddities import Reused
from oracles import loss_of
from torch import Tensor, nn

from medyate_planner import report
from medyate_planner.errors import InputError, MedyateError
from medyate_planner.losses import named_loss
from medyate_planner.reporting.gather import reported_modules, weights_by_module
from medyate_planner.subject import subject_of
from medyate_planner.trace import input_specs
from medyate_planner.training.ordinary import Regime, dry_ordinary


class _Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide, self.head = nn.Linear(4, 4), nn.Linear(4, 4000), nn.Linear(4000, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.narrow(x))
        x = self.wide(x)  # the widest
        x = x * 2
        return self.head(x)


def test_the_peak_of_inference_is_where_the_widest_tensors_meet() -> None:
    line = report(_Wide(), torch.zeros(8, 4)).steps[0].timeline
    assert (line.operator[line.peak_index], line.module[line.peak_index]) == ("mul", "")
    first = next(i for i, path in enumerate(line.module) if path == "wide")
    with open(__file__, encoding="utf-8") as file:
        number = next(n for n, text in enumerate(file, start=1) if text.endswith("# the widest\n"))
    assert line.source[first] == f"test_survey.py:{number}"
    assert line.source[line.peak_index] == f"test_survey.py:{number + 1}"


def _used_model() -> nn.Module:
    body = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(144, 5)).train()
    loss_of(model(torch.zeros(2, 3, 8, 8)), torch.zeros(2, dtype=torch.int64)).backward()
    model[0].weight.requires_grad_(False)
    return model


def test_a_report_leaves_the_model_as_it_was() -> None:
    model = _used_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    report(model, torch.zeros(2, 3, 8, 8), norm="train", optimizer="adam", measure=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 5]


@pytest.mark.parametrize("measure", [False, True])
def test_a_report_leaves_the_gradients_and_the_random_state_as_they_were(measure: bool) -> None:
    model = _used_model()
    gradients, random = [p.grad for p in model.parameters()], torch.get_rng_state()
    report(model, torch.zeros(2, 3, 8, 8), measure=measure)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), gradients, strict=True))


def test_parameters_of_complex_numbers_are_trained_too() -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filter, self.head = nn.Parameter(torch.ones(5, dtype=torch.cfloat)), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=8))

    made = report(Spectral(), torch.zeros(2, 8))
    assert made.full.gradients_bytes == 5 * 8 + (8 * 5 + 5) * 4


def test_a_batch_that_batch_norm_refuses_is_an_error_of_ours_and_no_obstacle_to_the_largest_batch() -> None:
    model, x = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)), torch.zeros(4, 6)
    with pytest.raises(MedyateError, match="1"):
        report(model, x[:1], norm="train")
    found = report(model, x, norm="train", budget="100kB").largest_batch
    assert next(row for row in found if row.step == "full").batch_size > 100


def test_a_sparse_embedding_is_reported_or_refused_by_name() -> None:
    model = nn.Sequential(nn.Embedding(9, 6, sparse=True), nn.Flatten(), nn.Linear(18, 5))
    try:
        made = report(model, torch.zeros(2, 3, dtype=torch.int64), measure=True)
    except MedyateError:
        return
    assert made.agrees


def test_one_pattern_is_not_taken_for_its_letters() -> None:
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5)), torch.zeros(2, 6)
    try:
        made = report(model, x, train="1.*")  # type: ignore[arg-type]
    except MedyateError:
        return
    assert made.full.gradients_bytes == (8 * 5 + 5) * 4


def test_reused_layers_hold_one_gradient() -> None:
    made = report(Reused(), torch.zeros(2, 3, 12, 12), optimizer="adamw")
    row = next(module for module in made.modules if module.path == "again")
    assert row.gradients_bytes == row.weights_bytes == (8 * 8 * 9 + 8) * 4
    assert row.optimizer_bytes == 2 * row.weights_bytes + 2 * 4


def test_reported_modules_leaves_out_what_holds_nothing() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Identity())
    loss, inputs = named_loss("cross-entropy"), torch.zeros(2, 6)
    dry = dry_ordinary(model, input_specs(inputs), 2, loss.function, loss.make_target, Regime())
    assert [module.path for module in reported_modules(model, weights_by_module(model), dry.step)] == ["", "0"]


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "lion"},
        {"norm": "batch"},
        {"autocast": "int8"},
        {"accumulation": 0},
        {"train": ("nothing.*",)},
        {"budget": "5"},
        {"budget": 0},
        {"loss": "hinge"},
    ],
)
def test_an_unknown_option_is_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        report(nn.Linear(6, 5), torch.zeros(2, 6), **options)  # type: ignore[arg-type]


def test_a_meta_model_is_reported_as_the_real_one_but_can_not_be_measured() -> None:
    x = torch.zeros(3, 3, 12, 12)
    with torch.device("meta"):
        ghost = Reused()
    found, expected = (
        report(ghost, x, optimizer="adamw", budget="1MB"),
        report(Reused(), x, optimizer="adamw", budget="1MB"),
    )
    assert found == expected
    with pytest.raises(InputError, match="meta"):
        report(ghost, x, measure=True)


def test_the_named_steps_have_their_three_numbers() -> None:
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)), torch.zeros(4, 6)
    made = report(model, x, optimizer="momentum")
    assert [step.name for step in made.steps] == ["inference", "full", "lean_full"]
    full = made.steps[1]
    weights, inputs = (6 * 8 + 8 + 8 * 5 + 5) * 4, 4 * 6 * 4
    saved = inputs + 4 * 8 * 4  # the input of the first layer, and the output of relu, which is that of the last
    loss = 4 * 5 * 4 + 4  # its log-softmax and the sum of the classes' weights; the classes are an input
    assert (full.saved_bytes, made.full.loss_bytes) == (saved, loss + 4 * 8)
    assert made.full.optimizer_bytes == made.full.gradients_bytes == made.full.weights_bytes == weights
    assert full.training_bytes == weights + max(saved + loss + 4 * 8, weights)
    assert made.inference.live_peak_bytes == weights + inputs + 2 * 4 * 8 * 4


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)), torch.zeros(4, 6)
    budget = 20_000
    for row in report(model, x, budget=budget).largest_batch:
        for batch, fits in ((row.batch_size, True), (row.batch_size + 1, False)):
            steps = report(model, torch.zeros(batch, 6)).steps
            peak = next(step for step in steps if step.name == row.step).live_peak_bytes
            assert (peak <= budget) is fits
            assert not fits or peak == row.live_peak_bytes


def test_a_batch_size_is_not_ignored_for_a_model_made_ready() -> None:
    ready = subject_of(nn.Linear(6, 5), torch.zeros(2, 6))
    try:
        made = report(ready, batch_size=7)
    except (MedyateError, TypeError):
        return
    assert made.batch_size == 7


def test_a_modules_name_is_never_run_as_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.fx writes names that are no identifiers into its generated code as they are."""
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential()
    model.add_module('x"),getattr(__import__("os"),"system")("touch harmed"),getattr(self,"x', nn.Linear(4, 4))
    model.add_module("x", nn.Linear(4, 4))
    with suppress(MedyateError):
        report(model, torch.zeros(2, 4))
    assert list(tmp_path.iterdir()) == []
