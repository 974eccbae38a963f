"""Planned training in the Trainer of transformers: what the plain loop does, within budget, with the real library."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from unchanged import assert_no_instruments, assert_only_planned_changed, assert_same, state_of

from medyate_planner import InputError, Plan, plan, prepare
from medyate_planner.errors import BudgetExceededError, MedyateWarning
from medyate_planner.importance.energy import from_weights
from medyate_planner.planning.plan import Sampling
from medyate_planner.subject import subject_of
from medyate_planner.training.session import Session

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from medyate_planner.integrations import FusedSGD  # noqa: E402
from medyate_planner.integrations.transformers import LOGGED, PlannedTrainingCallback  # noqa: E402

BATCH, BATCHES, EPOCHS, TOKENS, LABELS = 4, 6, 3, 12, 3
CLIP, BUDGET = 0.05, "20kB"


def bert() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=31,
        max_position_embeddings=TOKENS, num_labels=LABELS,
    )  # fmt: skip
    model: nn.Module = transformers.BertForSequenceClassification(config)
    return model


def example() -> dict[str, Tensor]:
    tokens = torch.zeros(BATCH, TOKENS, dtype=torch.int64)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def data() -> list[dict[str, Tensor]]:
    """Sentences that mostly consist of their own label."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for index in range(BATCH * BATCHES):
        label = torch.tensor(index % LABELS)
        noise = torch.randint(LABELS, 31, (TOKENS,), generator=generator)
        tokens = torch.where(torch.rand(TOKENS, generator=generator) < 0.5, label, noise)
        found.append({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": label})
    return found


@functools.cache
def planned(update: str, *, accumulation: int = 1, autocast: str | None = None) -> Plan:
    asked = {"update": "optimizer", "optimizer": "adamw", "accumulation": accumulation} if update != "fused" else {}
    return plan(bert(), example(), budget=BUDGET, autocast=autocast, request={"objective": "norm"}, **asked)


@functools.cache
def with_own_loss() -> Plan:
    def own_loss(outputs: Any, _target: Any) -> Tensor:
        loss: Tensor = outputs.loss
        return loss

    inputs = {**example(), "labels": torch.zeros(BATCH, dtype=torch.int64)}
    asked = {"update": "optimizer", "optimizer": "adamw", "accumulation": 2}
    return plan(bert(), inputs, budget=BUDGET, loss=own_loss, **asked)


def cross_entropy(outputs: Any, labels: Tensor, **_items: Any) -> Tensor:
    return nn.functional.cross_entropy(outputs.logits, labels)


def optimizer_for(session: Session) -> Any:
    if session.mode.is_fused:
        return FusedSGD(session, lr=0.1)
    return torch.optim.AdamW(session.parameters(), lr=0.005, foreach=False)


def arguments(folder: Path, **options: Any) -> Any:
    settings = {
        "per_device_train_batch_size": BATCH, "num_train_epochs": EPOCHS, "use_cpu": True, "report_to": [],
        "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no", "max_grad_norm": CLIP,
        "train_sampling_strategy": "sequential", "dataloader_pin_memory": False,
    }  # fmt: skip
    return transformers.TrainingArguments(str(folder), **{**settings, **options})


def trainer(session: Session, args: Any, *, enforce: bool = False, **options: Any) -> tuple[Any, Any]:
    """A user's Trainer, and its callback."""
    callback = PlannedTrainingCallback(session, enforce=enforce)
    given = {
        "train_dataset": data(), "eval_dataset": data(), "optimizers": (optimizer_for(session), None),
        "compute_loss_func": callback.compute_loss, **options,
    }  # fmt: skip
    used = transformers.Trainer(session.model, args, callbacks=[callback], **given)
    used.remove_callback(transformers.PrinterCallback)
    return used, callback


def batches() -> list[dict[str, Tensor]]:
    rows = data()
    return [
        {key: torch.stack([row[key] for row in rows[i : i + BATCH]]) for key in rows[0]}
        for i in range(0, len(rows), BATCH)
    ]


def plain_loop(decided: Plan, *, accumulation: int) -> nn.Module:
    """The same training without a framework: linear decay to zero, as the Trainer does."""
    model = bert()
    steps = EPOCHS * BATCHES // accumulation
    with prepare(model, decided) as session:
        optimizer, done = optimizer_for(session), 0
        rates = [group["lr"] for group in optimizer.param_groups]
        for epoch in range(EPOCHS):
            session.resample(epoch)
            for index, batch in enumerate(batches()):
                own = "labels" in [i.name for i in decided.model.inputs]
                labels = batch["labels"] if own else batch.pop("labels")
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * (steps - done) / steps
                if session.mode.is_fused:
                    session.set_lr(optimizer.param_groups[0]["lr"], clip=CLIP)
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=decided.autocast is not None):
                    outputs = session(**batch)
                    loss = outputs.loss if own else cross_entropy(outputs, labels)
                (loss / accumulation).backward()
                if (index + 1) % accumulation == 0:
                    if not session.mode.is_fused:
                        nn.utils.clip_grad_norm_(session.parameters(), CLIP)
                    optimizer.step()
                    done += 1
    return model


@pytest.mark.parametrize(
    ("update", "accumulation", "workers", "autocast"),
    [("fused", 1, 0, None), ("optimizer", 2, 1, None), ("fused", 1, 0, "bfloat16"), ("optimizer", 2, 0, "bfloat16")],
)
def test_a_run_is_the_plain_loop_bit_for_bit_and_within_budget(
    tmp_path: Path, update: str, accumulation: int, workers: int, autocast: str | None
) -> None:
    decided, model = planned(update, accumulation=accumulation, autocast=autocast), bert()
    before, modes = state_of(model), [m.training for m in model.modules()]
    session = prepare(model, decided)
    used, callback = trainer(
        session,
        arguments(
            tmp_path,
            gradient_accumulation_steps=accumulation,
            eval_strategy="epoch",
            dataloader_num_workers=workers,
            bf16=autocast is not None,
        ),
        enforce=True,
    )
    used.train()
    assert_same(state_of(model), state_of(plain_loop(decided, accumulation=accumulation)))
    assert_only_planned_changed(session.graph, decided, range(EPOCHS), before, state_of(model))
    logged = [entry for entry in used.state.log_history if "loss" in entry]
    assert len(logged) == EPOCHS * BATCHES // accumulation
    assert all(0 < entry[LOGGED] <= decided.budget_bytes for entry in logged)
    assert callback.largest_training_bytes == logged[-1][LOGGED] == decided.predicted.training_bytes
    norms = [entry["grad_norm"] for entry in logged if "grad_norm" in entry]
    assert len(norms) == (0 if update == "fused" else len(logged))
    assert all(norm > CLIP for norm in norms)
    evaluated = [entry["eval_loss"] for entry in used.state.log_history if "eval_loss" in entry]
    assert len(evaluated) == EPOCHS
    assert evaluated[-1] < evaluated[0]
    assert (used.args.max_grad_norm, [m.training for m in model.modules()]) == (CLIP, modes)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert_no_instruments(model)


def test_a_model_that_computes_its_own_loss(tmp_path: Path) -> None:
    """Labels are inputs of the plan; nothing else is told to the Trainer."""

    decided = with_own_loss()
    with prepare(bert(), decided) as session:
        used, callback = trainer(
            session, arguments(tmp_path, gradient_accumulation_steps=2), compute_loss_func=None, enforce=True
        )
        used.train()
        found = state_of(session.model)
    assert 0 < callback.largest_training_bytes <= decided.budget_bytes
    assert_same(found, state_of(plain_loop(decided, accumulation=2)))


@pytest.mark.parametrize("update", ["fused", "optimizer"])
def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path: Path, update: str) -> None:
    """From the middle of an epoch, with boosting, so that draws depend on the gradients seen before the stop."""
    importance = from_weights(subject_of(bert(), example()).graph, dict(bert().named_parameters()))
    sampling = Sampling(method="weighted", boost=0.5, interval=3)
    asked = {"update": "optimizer", "optimizer": "adamw"} if update == "optimizer" else {}
    decided = plan(bert(), example(), budget=BUDGET, importance=importance, sampling=sampling, **asked)

    def run(folder: Path, checkpoint: Path | None = None) -> tuple[Mapping[str, Tensor], Session, Any]:
        with prepare(bert(), decided, importance) as session:
            used, callback = trainer(
                session, arguments(folder, save_strategy="steps", save_steps=4, train_sampling_strategy="random")
            )
            used.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            return state_of(session.model), session, callback

    whole, session, _ = run(tmp_path / "whole")
    saved = tmp_path / "whole" / "checkpoint-8"
    from safetensors.torch import load_file

    assert set(load_file(saved / "model.safetensors")) == set(whole)
    resumed, again, callback = run(tmp_path / "again", saved)
    assert_same(resumed, whole)
    assert callback.steps.interval == EPOCHS * BATCHES // 3 - 1
    assert session.sampler_state()
    assert_same(again.sampler_state(), session.sampler_state())


def greedy(outputs: Any, labels: Tensor) -> Tensor:
    """A loss that keeps more than the one that was planned with."""
    wide = outputs.logits.repeat(1, 3000).exp()
    return cross_entropy(outputs, labels) + 0 * wide.square().mean()


@pytest.mark.parametrize("update", ["fused", "optimizer"])
def test_a_loss_that_keeps_too_much_stops_training_before_anything_is_updated(tmp_path: Path, update: str) -> None:
    decided, model = planned(update), bert()
    before = state_of(model)
    args = arguments(tmp_path)
    with prepare(model, decided) as session:
        callback = PlannedTrainingCallback(session, loss=greedy, enforce=True)
        used = transformers.Trainer(
            model, args, train_dataset=data(), callbacks=[callback], optimizers=(optimizer_for(session), None),
            compute_loss_func=callback.compute_loss,
        )  # fmt: skip
        with pytest.raises(BudgetExceededError, match=r"epoch 0, step 0 .* before it updated anything"):
            used.train()
        assert callback.largest_training_bytes > decided.budget_bytes
    assert_same(state_of(model), before)
    assert args.max_grad_norm == CLIP
    assert_no_instruments(model)


def test_a_step_above_the_budget_is_told_of_without_enforce(tmp_path: Path) -> None:
    with prepare(bert(), planned("fused")) as session:
        used, _ = trainer(session, arguments(tmp_path, max_steps=2), compute_loss_func=lambda o, y, **_: greedy(o, y))
        with pytest.warns(MedyateWarning, match="epoch 0, step 1 held"):
            used.train()


def test_an_exception_leaves_nothing_behind(tmp_path: Path) -> None:
    decided, model = planned("optimizer"), bert()

    def broken(*_args: Any, **_kwargs: Any) -> Tensor:
        raise RuntimeError("the user's own")

    args = arguments(tmp_path)
    with prepare(model, decided) as session, pytest.raises(RuntimeError, match="the user's own"):
        trainer(session, args, enforce=True, compute_loss_func=broken)[0].train()
    assert args.max_grad_norm == CLIP
    assert_no_instruments(model)


def test_what_does_not_fit_the_plan_is_refused(tmp_path: Path) -> None:
    def train(session: Session, **options: Any) -> None:
        settings = {key: options.pop(key) for key in ("bf16", "gradient_accumulation_steps") if key in options}
        trainer(session, arguments(tmp_path, **settings), **options)[0].train()

    with prepare(bert(), planned("optimizer")) as session:
        with pytest.raises(InputError, match=r"optimizer lacks .* of the session's parameters"):
            train(session, optimizers=(None, None))
        with pytest.raises(InputError, match="accumulation over 2 batches: the plan was made for 1"):
            train(session, gradient_accumulation_steps=2)
        with pytest.raises(InputError, match=r"called with labels, .* give the Trainer compute_loss_func"):
            train(session, compute_loss_func=None)
    with prepare(bert(), with_own_loss()) as session:
        with pytest.raises(InputError, match="under autocast bfloat16 with a plan made for no autocast"):
            train(session, bf16=True, compute_loss_func=None)
        with pytest.raises(InputError, match=r"called without labels, .* leave out compute_loss_func"):
            train(session)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    with (
        prepare(model, plan(model, torch.zeros(2, 4), budget="10kB", strategy="full")) as session,
        pytest.raises(InputError, match="the plan was made without names"),
    ):
        PlannedTrainingCallback(session)


def test_a_callback_is_made_before_its_trainer_and_serves_once(tmp_path: Path) -> None:
    with prepare(bert(), planned("fused")) as session:
        args, optimizers = arguments(tmp_path, max_steps=1), (optimizer_for(session), None)
        options = {"train_dataset": data(), "optimizers": optimizers, "compute_loss_func": cross_entropy}
        used = transformers.Trainer(session.model, args, **options)
        callback = PlannedTrainingCallback(session)
        used.add_callback(callback)
        with pytest.raises(InputError, match="make the PlannedTrainingCallback before the Trainer"):
            used.train()
        used = transformers.Trainer(session.model, args, callbacks=[callback], **options)
        used.train()
        with pytest.raises(InputError, match="the session has ended"):
            used.train()
