"""Planned training in PyTorch Lightning: what the plain loop does, within the budget, with the real library."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from unchanged import assert_no_instruments, assert_only_planned_changed, assert_same, state_of

from medyate_planner import InputError, Plan, plan, prepare
from medyate_planner.errors import BudgetExceededError, MedyateWarning
from medyate_planner.importance.energy import from_weights
from medyate_planner.planning.plan import Sampling
from medyate_planner.subject import subject_of

pl = pytest.importorskip("pytorch_lightning")
from medyate_planner.integrations import FusedSGD  # noqa: E402
from medyate_planner.integrations.lightning import LOGGED, PlannedTraining, session_of  # noqa: E402

BATCH, BATCHES, EPOCHS = 4, 6, 3
X = torch.zeros(BATCH, 3, 12, 12)
Configure = Callable[[Any], Any]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec",
    "ignore:You defined a `validation_step`",
    "ignore:The '.*dataloader' does not have many workers",
    "ignore:Starting from v1.9",
    "ignore:Found .* in eval mode",
)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(),
        nn.Conv2d(8, 12, 1, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(BATCH * BATCHES) % 4
    x = torch.randn(len(y), 3, 12, 12, generator=generator) + y.view(-1, 1, 1, 1)
    return TensorDataset(x, y)


@functools.cache
def planned(update: str, *, accumulation: int = 1, autocast: str | None = None) -> Plan:
    asked = {"update": "optimizer", "optimizer": "adamw", "accumulation": accumulation} if update != "fused" else {}
    return plan(net(), X, budget="12kB", autocast=autocast, **asked)


class Classifier(pl.LightningModule):  # type: ignore[misc,name-defined]
    """A user's own module: it knows of the plan in `configure_optimizers` alone."""

    def __init__(self, configure: Configure) -> None:
        super().__init__()
        self.net = net()
        self.configure = configure
        self.losses: list[float] = []
        self.evaluated: list[Tensor] = []

    def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
        x, y = batch
        loss = functional.cross_entropy(self.net(x), y)
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: list[Tensor], _index: int) -> None:
        self.evaluated.append(self.net(batch[0]))

    def configure_optimizers(self) -> Any:
        return self.configure(self)


def fused(module: Any) -> Any:
    optimizer = FusedSGD(session_of(module), lr=0.05, weight_decay=0.01, clip=5.0)
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


def adamw(module: Any) -> Any:
    optimizer = torch.optim.AdamW(session_of(module).parameters(), lr=0.01, foreach=False)
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"accelerator": "cpu", "max_epochs": EPOCHS, "enable_checkpointing": False, **quiet, **options}
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **settings)


def loader(workers: int = 0) -> Any:
    return DataLoader(data(), batch_size=BATCH, num_workers=workers)


def plain_loop(decided: Plan, *, accumulation: int, clip: float | None) -> nn.Module:
    """The same training without a framework."""
    model = net()
    with prepare(model, decided) as session:
        optimizer = None
        if decided.update == "optimizer":
            optimizer = torch.optim.AdamW(session.parameters(), lr=0.01, foreach=False)
        for epoch in range(EPOCHS):
            session.resample(epoch)
            session.set_lr(0.05 * 0.5**epoch, weight_decay=0.01, clip=5.0)
            for group in optimizer.param_groups if optimizer else ():
                group["lr"] = 0.01 * 0.5**epoch
            for index, (x, y) in enumerate(loader()):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=decided.autocast is not None):
                    loss = functional.cross_entropy(session(x), y)
                (loss / accumulation).backward()
                if optimizer is not None and (index + 1) % accumulation == 0:
                    if clip is not None:
                        nn.utils.clip_grad_norm_(session.parameters(), clip)
                    optimizer.step()
    return model


@pytest.mark.parametrize(
    ("update", "configure", "accumulation", "clip", "workers", "autocast"),
    [
        ("fused", fused, 1, None, 0, None), ("optimizer", adamw, 1, None, 1, None),
        ("optimizer", adamw, 2, 0.1, 0, None), ("fused", fused, 1, None, 0, "bfloat16"),
        ("optimizer", adamw, 2, 0.1, 0, "bfloat16"),
    ],
)  # fmt: skip
def test_a_run_is_the_plain_loop_bit_for_bit_and_within_budget(
    tmp_path: Path,
    update: str,
    configure: Configure,
    accumulation: int,
    clip: float | None,
    workers: int,
    autocast: str | None,
) -> None:
    decided = planned(update, accumulation=accumulation, autocast=autocast)
    callback = PlannedTraining(decided, enforce=True)
    module = Classifier(configure)
    module.net[1].weight.requires_grad_(False)
    before, modes = state_of(module.net), [m.training for m in module.net.modules()]
    precision = "bf16-mixed" if autocast else "32-true"
    used = trainer(
        tmp_path, callback, accumulate_grad_batches=accumulation, gradient_clip_val=clip, precision=precision
    )
    used.fit(module, loader(workers), loader())
    assert 0 < callback.largest_training_bytes <= decided.budget_bytes
    assert callback.largest_training_bytes == decided.predicted.training_bytes
    assert_only_planned_changed(callback.session.graph, decided, range(EPOCHS), before, state_of(module.net))
    assert_same(state_of(module.net), state_of(plain_loop(decided, accumulation=accumulation, clip=clip)))
    assert len(module.losses) == EPOCHS * BATCHES
    assert sum(module.losses[-BATCHES:]) < sum(module.losses[:BATCHES])
    assert len(module.evaluated) == 2 + EPOCHS * BATCHES  # 2 before training, to see that it works
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast is not None):
        assert torch.equal(module.evaluated[-1], module.net.eval()(data()[-BATCH:][0]))
    module.net.train()
    assert [m.training for m in module.net.modules()] == modes
    assert_no_instruments(module.net)
    assert [name for name, p in module.net.named_parameters() if not p.requires_grad] == ["1.weight"]


def test_the_second_step_of_an_epoch_is_measured_and_logged(tmp_path: Path) -> None:
    decided = planned("optimizer")
    callback = PlannedTraining(decided)
    steps = []

    class Count(pl.Callback):  # type: ignore[misc,name-defined]
        def on_train_batch_end(self, used: Any, *_rest: Any) -> None:
            steps.append((used.current_epoch, callback.seen))

    used = trainer(tmp_path, callback, Count())
    used.fit(Classifier(adamw), loader())
    kinds = [[id(seen) for epoch, seen in steps if epoch == e] for e in range(EPOCHS)]
    assert [len(set(one)) for one in kinds] == [2] * EPOCHS  # that of the epoch before, and its own
    assert all(len(set(one[1:])) == 1 for one in kinds)
    assert used.callback_metrics[LOGGED].item() == decided.predicted.training_bytes
    assert callback.seen is not None
    assert callback.seen.saved_bytes == decided.predicted.saved_bytes
    assert callback.seen.loss_bytes == decided.predicted.loss_bytes


@pytest.mark.parametrize("update", ["fused", "optimizer"])
def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path: Path, update: str) -> None:
    """With boosting, so that draws depend on the gradients seen before the stop."""
    graph = subject_of(net(), X).graph
    importance = from_weights(graph, dict(net().named_parameters()))
    sampling = Sampling(method="weighted", boost=0.5, interval=2)
    asked = {"update": "optimizer", "optimizer": "adamw"} if update == "optimizer" else {}
    decided = plan(net(), X, budget="12kB", importance=importance, sampling=sampling, **asked)
    configure = fused if update == "fused" else adamw

    def run(folder: Path, checkpoint: Path | None = None) -> tuple[Classifier, PlannedTraining]:
        module, callback = Classifier(configure), PlannedTraining(decided, importance=importance)
        saver = pl.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        used = trainer(tmp_path, callback, saver, enable_checkpointing=True)
        used.fit(module, loader(), loader(), ckpt_path=checkpoint)
        return module, callback

    whole, uninterrupted = run(tmp_path / "whole")
    resumed, callback = run(tmp_path / "again", tmp_path / "whole" / "epoch=0.ckpt")
    assert len(resumed.losses) == (EPOCHS - 1) * BATCHES
    assert_same(state_of(resumed.net), state_of(whole.net))
    assert callback.steps.interval == uninterrupted.steps.interval == EPOCHS * BATCHES // 2 - 1
    states = [c.session.sampler_state() for c in (callback, uninterrupted)]
    assert states[0]
    assert_same(*states)


def test_a_loss_that_keeps_too_much_stops_training_before_anything_is_updated(tmp_path: Path) -> None:
    class Greedy(Classifier):
        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            outputs = self.net(batch[0])
            wide = outputs.repeat(1, 2000).exp()
            return functional.cross_entropy(outputs, batch[1]) + 0 * wide.square().mean() * float(index >= 2)

    decided = planned("fused")
    module = Greedy(fused)
    before = state_of(module.net)
    with pytest.raises(BudgetExceededError, match=r"epoch 0, step 0 .* before it updated anything") as caught:
        trainer(tmp_path, PlannedTraining(decided, enforce=True)).fit(module, loader())
    assert caught.value.measured_bytes > decided.budget_bytes
    assert_same(state_of(module.net), before)
    assert_no_instruments(module.net)
    with pytest.warns(MedyateWarning, match="epoch 0, step 1 held"):
        trainer(tmp_path, PlannedTraining(decided), max_epochs=1).fit(module, loader())


def test_a_session_of_the_users_own(tmp_path: Path) -> None:
    """Prepared by hand, for a module that is not told by its number of parameters."""
    decided = planned("optimizer")
    module = Classifier(adamw)
    session = prepare(module.net, decided)
    trainer(tmp_path, PlannedTraining(session), max_epochs=1).fit(module, loader())
    with pytest.raises(InputError, match="session has ended"):
        trainer(tmp_path, PlannedTraining(session), max_epochs=1).fit(module, loader())
    with pytest.raises(InputError, match="is no part of Classifier"):
        trainer(tmp_path, PlannedTraining(prepare(net(), decided))).fit(module, loader())


def test_what_does_not_fit_the_plan_is_refused(tmp_path: Path) -> None:
    def own(module: Any) -> Any:
        return torch.optim.SGD(module.net.parameters(), lr=0.1)

    def fit(decided: Plan, configure: Configure, **options: Any) -> None:
        trainer(tmp_path, PlannedTraining(decided), **options).fit(Classifier(configure), loader())

    by_optimizer, by_fused = planned("optimizer"), planned("fused")
    with pytest.raises(InputError, match=r"optimizer lacks .* of the session's parameters"):
        fit(by_optimizer, own)
    with pytest.raises(InputError, match="give the loop FusedSGD"):
        fit(by_fused, own)
    with pytest.raises(InputError, match="FusedSGD: the plan's update mode is optimizer"):
        fit(by_optimizer, fused)
    with pytest.raises(InputError, match="accumulation over 2 batches: the plan was made for 1"):
        fit(by_fused, fused, accumulate_grad_batches=2)
    with pytest.raises(InputError, match="not values"):
        fit(by_fused, fused, gradient_clip_val=1.0, gradient_clip_algorithm="value")
    with pytest.raises(InputError, match="under autocast bfloat16 with a plan made for no autocast"):
        fit(by_fused, fused, precision="bf16-mixed")
    with pytest.raises(InputError, match="on cpu as bfloat16, but was prepared on cpu by a plan for float32"):
        fit(by_fused, fused, precision="bf16-true")


def test_the_planned_module_is_found_by_its_parameters_or_its_name(tmp_path: Path) -> None:
    decided = planned("fused")

    class Twice(Classifier):
        def __init__(self) -> None:
            super().__init__(fused)
            self.teacher = net()

    with pytest.raises(InputError, match=r"expected one child of Twice .* pass module='NAME'"):
        trainer(tmp_path, PlannedTraining(decided)).fit(Twice(), loader())
    module, callback = Twice(), PlannedTraining(decided, module="net")
    before = state_of(module.teacher)
    trainer(tmp_path, callback, max_epochs=1).fit(module, loader())
    assert callback.session.model is module.net
    assert_same(state_of(module.teacher), before)
    with pytest.raises(InputError, match="no session yet"):
        _ = PlannedTraining(decided).session
    with pytest.raises(InputError, match="no PlannedTraining callback"):
        trainer(tmp_path).fit(Classifier(fused), loader())
