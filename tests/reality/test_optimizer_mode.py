"""Update mode `optimizer` in a user's own loop, against plain PyTorch with masked gradients, in float64."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from random import Random
from typing import Any

import pytest
import torch
from channels import mask_of, parameters_of, sliced
from masked import MaskedModel
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import optimizer as torch_optimizer
from torch.utils.data import DataLoader, TensorDataset

from medyate_planner import InputError, plan, prepare
from medyate_planner.errors import StepOrderError
from medyate_planner.memory.mode import UpdateMode
from medyate_planner.memory.model import Updates
from medyate_planner.subject import Subject, subject_of
from medyate_planner.training.session import Session

BATCH, CLASSES = 4, 5
OPTIMIZER = UpdateMode(update="optimizer", optimizer="adamw")


class Everything(nn.Module):
    """Every kind of layer: two of them called twice, one tied to the head, norms of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.batch_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise, self.grouped = nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.group_norm, self.up = nn.GroupNorm(4, 16), nn.ConvTranspose2d(16, 6, 2, stride=2)
        self.up_each = nn.ConvTranspose2d(6, 12, 2, stride=2, groups=6)
        self.pool, self.words, self.layer_norm = nn.Linear(12, 8), nn.Embedding(11, 8, padding_idx=0), nn.LayerNorm(8)
        self.mix, self.tokens = nn.Linear(8, 8), nn.Embedding(CLASSES, 8)
        self.head = nn.Linear(8, CLASSES)
        self.head.weight = self.tokens.weight

    def forward(self, picture: Tensor, words: Tensor) -> Tensor:
        x = functional.silu(self.depthwise(torch.relu(self.batch_norm(self.conv(picture)))))
        x = self.grouped(torch.tanh(self.group_norm(self.grouped(x))))
        x = torch.tanh(self.up_each(functional.gelu(self.up(x)))).mean((2, 3))
        y = self.mix(torch.tanh(self.mix(self.layer_norm(self.words(words)))))
        return self.head(torch.tanh(self.pool(x) + y.mean(1) + self.tokens(words % CLASSES).mean(1)))


@cache
def made(copy_number: int) -> tuple[Subject, dict[str, Tensor]]:  # noqa: ARG001
    """The network, traced, and its weights and buffers; all copies are alike."""
    torch.manual_seed(0)
    model = Everything().double().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) + (0.5 if name.endswith(("weight", "var")) else 0.0))
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return subject_of(model, batch_from(torch.Generator())[0], mode=OPTIMIZER), initial


def batch_from(generator: torch.Generator) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Pictures and words, and their classes."""
    picture = torch.randn(BATCH, 3, 6, 6, generator=generator, dtype=torch.float64)
    words = torch.randint(0, 11, (BATCH, 7), generator=generator)
    return (picture, words), torch.randint(0, CLASSES, (BATCH,), generator=generator)


opened: weakref.WeakSet[Session] = weakref.WeakSet()


@pytest.fixture(autouse=True)
def _finish_all() -> Iterator[None]:
    """The networks are shared by the tests."""
    yield
    for session in opened:
        session.finish()
        session.model.eval().requires_grad_()


class Loop:
    """A session and its oracle, which are led through the same loop."""

    def __init__(self, seed: int = 0, *, copy_number: int = 0) -> None:
        self.subject, initial = made(copy_number)
        self.model = self.subject.model
        self.model.load_state_dict(initial)
        self.generator = torch.Generator().manual_seed(seed)
        self.updates = updates_of(self.subject)
        self.session = self.open()
        self.oracle = MaskedModel(self.model, self.subject.graph, self.updates)
        self.resample(0)

    def open(self) -> Session:
        subject = self.subject
        session = Session(self.model, subject.traced, subject.graph, self.updates, self.draw, mode=OPTIMIZER)
        opened.add(session)
        return session

    def draw(self, interval: int) -> dict[str, list[int]]:
        """About half of the channels of every layer: from one interval to the next some stay and some go."""
        dice = Random(interval)
        by_name = self.subject.graph.layer_by_name
        return {
            name: sorted(dice.sample(range(by_name[name].channels), quota))
            for name, quota in self.updates.quotas.items()
        }

    def resample(self, interval: int) -> None:
        drawn = self.session.resample(interval)
        assert drawn == self.draw(interval)
        self.oracle.select(drawn)

    def batch(self) -> tuple[tuple[Tensor, Tensor], Tensor]:
        return batch_from(self.generator)

    def optimizers(self, make: Callable[[Mapping[str, nn.Parameter]], torch.optim.Optimizer]) -> torch.optim.Optimizer:
        """The same optimizer on both sides; that of the session is returned."""
        self.oracle.make(lambda: make(self.oracle.named_parameters()))
        names = set(self.session.named_parameters())
        assert names == set(self.oracle.named_parameters())
        ordered = {name: self.session.named_parameters()[name] for name in self.oracle.named_parameters()}
        return make(ordered)

    def passes(self, count: int = 1) -> None:
        """Forward and backward of so many batches."""
        for _ in range(count):
            inputs, target = self.batch()
            mine, theirs = self.session(*inputs), self.oracle.model(*inputs)
            assert torch.equal(mine, theirs) or torch.allclose(mine, theirs, rtol=1e-9, atol=1e-11)
            functional.cross_entropy(mine, target).backward()
            self.oracle.backward(functional.cross_entropy(theirs, target))

    def step(self, optimizer: torch.optim.Optimizer, *, passes: int = 1, clip: float | None = None) -> None:
        """One step of both, and a comparison of all weights."""
        self.passes(passes)
        if clip is not None:
            nn.utils.clip_grad_norm_(self.session.parameters(), clip)
        optimizer.step()
        assert all(parameter.grad is None for parameter in self.session.parameters())
        optimizer.zero_grad()
        self.oracle.step(clip=clip)
        self.compare()

    def compare(self) -> None:
        for name, mine in parameters_of(self.model).items():
            expected = self.oracle.parameters[name].detach()
            torch.testing.assert_close(
                mine.detach(), expected, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
            )


def updates_of(subject: Subject) -> Updates:
    """Half of the channels of most layers, some in full, some biases, some left alone."""
    in_full, frozen = ("head", "pool"), ("mix",)
    units = [unit for unit in subject.graph.units if unit.name not in (*in_full, *frozen)]
    assert {unit.kind for unit in units} == {
        "conv", "depthwise", "grouped", "transposed", "embedding", "norm",
    }  # fmt: skip
    return Updates(
        quotas={unit.name: (unit.channels + 1) // 2 for unit in units} | {"mix": 3},
        biases=frozenset({"conv", "grouped", "batch_norm", "layer_norm", "mix", "up_each"}),
        full=frozenset(in_full),
    )


def settings(kind: type[torch.optim.Optimizer], **options: Any) -> Callable[..., torch.optim.Optimizer]:
    return lambda named: kind(list(named.values()), **options)


OPTIMIZERS = {
    "sgd": settings(torch.optim.SGD, lr=0.1, weight_decay=0.1),
    "nesterov": settings(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "momentum, foreach": settings(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1, foreach=True),
    "momentum, fused": settings(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1, fused=True),
    "adam": settings(torch.optim.Adam, lr=0.01, weight_decay=0.1),
    "adam, amsgrad": settings(torch.optim.Adam, lr=0.01, amsgrad=True),
    "adamw": settings(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "adamw, fused": settings(torch.optim.AdamW, lr=0.01, weight_decay=0.1, fused=True),
    "rmsprop": settings(torch.optim.RMSprop, lr=0.01, momentum=0.5, centered=True),
    "adagrad": settings(torch.optim.Adagrad, lr=0.05),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_steps_are_those_of_the_masked_whole_model_also_when_channels_are_redrawn(kind: str) -> None:
    loop = Loop()
    before = {name: tensor.clone() for name, tensor in loop.model.state_dict().items()}
    optimizer = loop.optimizers(OPTIMIZERS[kind])
    for interval in range(4):
        loop.resample(interval)
        for _ in range(3):
            loop.step(optimizer)
    touched = {name for name, tensor in loop.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert touched == {*loop.oracle.masks, "tokens.weight"}


@pytest.mark.parametrize("kind", ["sgd", "momentum, foreach", "adamw"])
def test_accumulation_clipping_and_groups(kind: str) -> None:
    loop = Loop(1)

    def make(named: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = OPTIMIZERS[kind]({name: p for name, p in named.items() if p.dim() > 1})
        biases = [p for p in named.values() if p.dim() == 1]
        optimizer.add_param_group({"params": biases, "lr": 0.003, "weight_decay": 0.0})
        return optimizer

    optimizer = loop.optimizers(make)
    for interval in range(3):
        loop.resample(interval)
        for _ in range(2):
            loop.step(optimizer, passes=3, clip=0.5)


def test_global_norm_is_that_of_the_masked_gradient() -> None:
    loop = Loop(2)
    loop.passes(2)
    norm = nn.utils.clip_grad_norm_(loop.session.parameters(), 0.1)
    expected = nn.utils.clip_grad_norm_(loop.oracle.named_parameters().values(), 0.1)
    torch.testing.assert_close(norm, expected, rtol=1e-9, atol=0)


def test_two_optimizers_share_the_parameters() -> None:
    loop = Loop(3)
    first, second = ([], [])  # type: ignore[var-annotated]
    for name in loop.oracle.named_parameters():
        (first if "weight" in name else second).append(name)
    for optimizer_names, make in ((first, OPTIMIZERS["adamw"]), (second, OPTIMIZERS["nesterov"])):
        loop.oracle.make(lambda n=optimizer_names, m=make: m({k: loop.oracle.parameters[k] for k in n}))  # type: ignore[misc]
    own = loop.session.named_parameters()
    optimizers = [
        OPTIMIZERS["adamw"]({k: own[k] for k in first}), OPTIMIZERS["nesterov"]({k: own[k] for k in second})
    ]  # fmt: skip
    for interval in range(3):
        loop.resample(interval)
        loop.passes()
        for optimizer in optimizers:
            optimizer.step()
        loop.oracle.step()
        loop.compare()


def test_several_forwards_before_one_backward_and_mixed_losses() -> None:
    loop = Loop(4)
    optimizer = loop.optimizers(OPTIMIZERS["adamw"])
    for interval in range(3):
        loop.resample(interval)
        batches = [loop.batch() for _ in range(3)]

        def loss(callee: Callable[..., Tensor], batches: list[Any] = batches) -> Tensor:
            a, b, c = (callee(*inputs) for inputs, _ in batches)
            contrast = (a.softmax(1) * b.softmax(1)).sum()
            return functional.cross_entropy(a, batches[0][1]) + 0.3 * contrast + c.square().mean()

        loss(loop.session).backward()
        loop.oracle.backward(loss(loop.oracle.model))
        optimizer.step()
        loop.oracle.step()
        loop.compare()


def test_two_backwards_through_one_forward_add_up() -> None:
    loop = Loop(21)
    optimizer = loop.optimizers(OPTIMIZERS["sgd"])
    inputs, target = loop.batch()
    for callee, backward in ((loop.session, Tensor.backward), (loop.oracle.model, loop.oracle.backward)):
        output = callee(*inputs)
        output.square().mean().backward(retain_graph=True)
        backward(functional.cross_entropy(output, target))
    optimizer.step()
    loop.oracle.step()
    loop.compare()


def test_gradients_accumulated_across_a_redraw_stay_with_their_channels() -> None:
    loop = Loop(5)
    optimizer = loop.optimizers(OPTIMIZERS["momentum, foreach"])
    loop.step(optimizer)
    loop.passes(2)
    loop.resample(1)
    for layer in loop.subject.graph.units:
        if layer.name in loop.updates.quotas:
            gradient = loop.session.named_parameters()[layer.weight].grad
            whole = loop.oracle.parameters[layer.weight].grad
            assert gradient is not None
            assert whole is not None
            expected = sliced(layer, whole, loop.draw(1)[layer.name])
            torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
            assert (gradient == 0).any(), layer.name
    loop.step(optimizer)


@pytest.mark.parametrize("kind", ["momentum, foreach", "adam, amsgrad", "adamw"])
@pytest.mark.parametrize("new_session", [False, True])
def test_state_saved_before_and_loaded_after_a_redraw_belongs_to_the_same_channels(
    kind: str, new_session: bool
) -> None:
    loop = Loop(6)
    optimizer = loop.optimizers(OPTIMIZERS[kind])
    loop.step(optimizer)
    loop.step(optimizer)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    if new_session:
        loop.session.finish()
        loop.session = loop.open()
    loop.resample(1)
    own = loop.session.named_parameters()
    optimizer = OPTIMIZERS[kind]({name: own[name] for name in loop.oracle.named_parameters()})
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    loop.step(optimizer)
    loop.resample(2)
    loop.step(optimizer)


def test_a_channel_that_leaves_and_returns_between_steps_keeps_what_the_optimizer_has_of_it() -> None:
    loop = Loop(7)
    optimizer = loop.optimizers(OPTIMIZERS["adamw"])
    loop.step(optimizer)
    state = {p: {k: v.clone() for k, v in s.items() if torch.is_tensor(v)} for p, s in optimizer.state.items()}
    loop.session.resample(1)
    loop.session.resample(0)
    loop.step(optimizer)  # the oracle has seen nothing
    assert len(state) == len(optimizer.state)


def test_a_factored_state_is_dropped_when_channels_are_redrawn_and_works() -> None:
    loop = Loop(8)
    optimizer = torch.optim.Adafactor(loop.session.parameters(), lr=0.01)
    own, layers = loop.session.named_parameters(), loop.subject.graph.layer_by_name

    def step() -> None:
        inputs, target = loop.batch()
        functional.cross_entropy(loop.session(*inputs), target).backward()
        optimizer.step()

    step()
    step()
    assert all(float(optimizer.state[p]["step"]) == 2 for p in own.values())
    loop.session.resample(1)
    step()
    for name, quota in loop.updates.quotas.items():
        parameter = own[layers[name].weight]
        factored = parameter.dim() > 1
        assert float(optimizer.state[parameter]["step"]) == (1 if factored else 3), name
        assert quota < layers[name].channels
    assert float(optimizer.state[own["pool.weight"]]["step"]) == 3  # in full: nothing was redrawn
    assert all(torch.isfinite(p).all() for p in own.values())


class Raw(torch.optim.Optimizer):
    """As many optimizers outside of torch are written: it changes `.data`, which torch does not notice."""

    def __init__(self, params: Iterable[Any], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:  # noqa: ARG002
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.add_(parameter.grad.data, alpha=-group["lr"])


def test_an_optimizer_that_changes_data_behind_torchs_back() -> None:
    loop = Loop(9)
    optimizer = loop.optimizers(settings(Raw, lr=0.1))
    for interval in range(2):
        loop.resample(interval)
        loop.step(optimizer)


def test_an_optimizer_that_calls_a_closure_several_times() -> None:
    loop = Loop(10)
    inputs, target = loop.batch()
    optimizer = torch.optim.LBFGS(loop.session.parameters(), lr=0.5, max_iter=6)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(loop.session(*inputs), target)
        loss.backward()
        return loss.detach()

    first = float(optimizer.step(closure))
    second = float(optimizer.step(closure))
    loop.session.resample(1)
    third = float(optimizer.step(closure))
    last = float(functional.cross_entropy(loop.session.eval()(*inputs), target))
    assert first > second > third > last


def test_evaluation_and_the_users_modes_in_between_change_nothing() -> None:
    plain, disturbed = Loop(11), Loop(11, copy_number=1)
    optimizers = [loop.optimizers(OPTIMIZERS["adamw"]) for loop in (plain, disturbed)]
    for interval in range(2):
        for loop, optimizer in zip((plain, disturbed), optimizers, strict=True):
            loop.resample(interval)
            loop.model.train(loop is disturbed)
            inputs, target = loop.batch()
            output = loop.session(*inputs)
            if loop is disturbed:
                others = disturbed_inputs()
                with torch.no_grad():
                    in_training = loop.session(*others)
                    evaluated = loop.session.eval()(*others)
                loop.session.train()
                loop.model.train()
                assert torch.equal(in_training, evaluated)
                assert not evaluated.requires_grad
                assert torch.equal(evaluated, copy.deepcopy(loop.model).eval()(*others))
            functional.cross_entropy(output, target).backward()
            optimizer.step()
    for mine, theirs in zip(plain.model.state_dict().values(), disturbed.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def disturbed_inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.ones(2, 7, dtype=torch.int64)


def test_data_loader_workers_bring_the_same_training() -> None:
    def trained(workers: int) -> dict[str, Tensor]:
        loop = Loop(12)
        (picture, words), target = loop.batch()
        data = TensorDataset(picture.repeat(3, 1, 1, 1), words.repeat(3, 1), target.repeat(3))
        optimizer = OPTIMIZERS["adamw"](loop.session.named_parameters())
        for epoch in range(2):
            loop.session.resample(epoch)
            for a, b, y in DataLoader(data, batch_size=BATCH, num_workers=workers):
                functional.cross_entropy(loop.session(a, b), y).backward()
                optimizer.step()
        loop.session.finish()
        return loop.model.state_dict()

    alone, helped = trained(0), trained(2)
    assert all(torch.equal(tensor, helped[name]) for name, tensor in alone.items())


@pytest.mark.parametrize("then", ["train", "evaluate", "evaluate attached", "redraw", "finish"])
@pytest.mark.parametrize("kind", ["sgd", "adamw, fused"])
def test_weights_that_the_user_loads_in_between_are_taken_over(kind: str, then: str) -> None:
    """As on going on from a checkpoint: the session must not bring back what it had before."""
    loop = Loop(13)
    optimizer = loop.optimizers(OPTIMIZERS[kind])
    loop.step(optimizer)
    other = {name: tensor * 0.9 for name, tensor in loop.model.state_dict().items() if tensor.is_floating_point()}
    for model in (loop.model, loop.oracle.model):
        model.load_state_dict(other, strict=False)
    inputs, _ = loop.batch()
    if then.startswith("evaluate"):
        callee = loop.session.attach().model.eval() if "attached" in then else loop.session.eval()
        assert torch.equal(callee(*inputs), loop.oracle.model(*inputs))
        loop.session.train()
    elif then == "redraw":
        loop.resample(1)
    elif then == "finish":
        loop.session.finish()
    loop.compare()
    if then != "finish":
        loop.step(optimizer)
        loop.session.finish()
        loop.compare()


# What is refused


@pytest.mark.parametrize("name", ["a selection", "the head"])
def test_a_step_between_forward_and_backward_is_refused(name: str) -> None:
    loop = Loop(14)
    optimizer = OPTIMIZERS["sgd"](loop.session.named_parameters())
    inputs, target = loop.batch()
    functional.cross_entropy(loop.session(*inputs), target).backward()
    late = functional.cross_entropy(loop.session(*inputs), target)
    if name == "the head":
        optimizer.param_groups[0]["params"] = [loop.session.named_parameters()["head.weight"]]
    optimizer.step()
    with pytest.raises(StepOrderError, match="step the optimizer after the backward"):
        late.backward()
    loop.session.finish()


def test_a_redraw_between_forward_and_backward_is_refused() -> None:
    loop = Loop(15)
    inputs, target = loop.batch()
    loss = functional.cross_entropy(loop.session(*inputs), target)
    loop.session.resample(1)
    with pytest.raises(StepOrderError, match=r"call resample\(\) between steps"):
        loss.backward()
    functional.cross_entropy(loop.session(*inputs), target).backward()


def test_autocast_that_was_not_planned_for_is_refused() -> None:
    loop = Loop(16)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(InputError, match="plan made for no autocast"):
        loop.session(*loop.batch()[0])


# What is put back


def hooks() -> int:
    return len(torch_optimizer._global_optimizer_pre_hooks) + len(torch_optimizer._global_optimizer_post_hooks)


def test_finish_puts_everything_back() -> None:
    before_hooks = hooks()
    loop = Loop(17)
    loop.session.finish()
    model = loop.model
    model.words.requires_grad_(False)
    model.train()
    model.pool.eval()
    required, modes = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    session = loop.open().attach()
    assert hooks() > before_hooks
    session.resample(0)
    optimizer = OPTIMIZERS["adamw"](session.named_parameters())
    inputs, target = loop.batch()
    functional.cross_entropy(session(*inputs), target).backward()
    optimizer.step()
    functional.cross_entropy(session(*inputs), target).backward()
    after = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert session.finish() is model
    assert hooks() == before_hooks
    assert [p.requires_grad for p in model.parameters()] == required
    assert [m.training for m in model.modules()] == modes
    assert "forward" not in vars(model)
    assert all(p.grad is None for p in model.parameters())
    optimizer.step()  # of no effect any more
    assert all(torch.equal(tensor, after[name]) for name, tensor in model.state_dict().items())


def test_a_session_that_is_dropped_takes_its_hooks_with_it() -> None:
    gc.collect()
    before = hooks()
    loop = Loop(18)
    assert hooks() > before
    del loop
    gc.collect()
    assert hooks() == before


def test_other_optimizers_keep_their_gradients_state_and_weights() -> None:
    other, expected = (torch.nn.Linear(3, 2) for _ in range(2))
    expected.load_state_dict(other.state_dict())
    x = torch.randn(4, 3)

    def step(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        model(x).square().sum().backward()
        optimizer.step()
        return optimizer

    step(expected)
    loop = Loop(19)
    before = {name: tensor.clone() for name, tensor in loop.model.state_dict().items()}
    optimizer = step(other)
    assert all(p.grad is not None for p in other.parameters())
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), expected.parameters(), strict=True))
    assert all(set(state) == {"step", "exp_avg", "exp_avg_sq"} for state in optimizer.state.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in loop.model.state_dict().items())


# In somebody else's loop


def test_attach_trains_in_training_mode_and_is_the_original_in_evaluation() -> None:
    loop, twin = Loop(20), Loop(20, copy_number=1)
    original = loop.model.forward
    optimizers = [OPTIMIZERS["adamw"](made.session.named_parameters()) for made in (loop, twin)]
    assert loop.session.attach() is loop.session
    assert loop.session.attach() is loop.session  # twice is as good as once
    assert inspect.signature(loop.model.forward) == inspect.signature(original)
    assert loop.model.forward.__name__ == "forward"
    for interval in range(2):
        for made, optimizer in zip((loop, twin), optimizers, strict=True):
            made.session.resample(interval)
            inputs, target = made.batch()
            output = made.model.train()(*inputs) if made is loop else made.session(*inputs)
            assert output.grad_fn is not None
            functional.cross_entropy(output, target).backward()
            optimizer.step()
        evaluated = loop.model.eval()(*inputs)
        assert torch.equal(evaluated, original(*inputs))
        assert torch.equal(evaluated, copy.deepcopy(twin.model).eval()(*inputs))
    for mine, theirs in zip(loop.model.state_dict().values(), twin.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(InputError, match="plan again"):
        loop.model.train()(torch.zeros(BATCH + 1, 3, 6, 6).double(), torch.zeros(BATCH + 1, 7).long())


def test_the_public_way_from_plan_to_a_trained_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    x, target = torch.randn(4, 6), torch.arange(4) % 3
    decided = plan(model, x, budget=900, update="optimizer", optimizer="momentum", request={"buy_biases": False})
    quotas = decided.quotas()
    assert 0 < quotas["0"] < 6
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with prepare(model, decided) as session:
        (drawn,) = [session.resample(0)]
        assert {name: tuple(p.shape) for name, p in session.named_parameters().items()} == {
            "0.weight": (8, quotas["0"]), "2.weight": (3, 8), "2.bias": (3,)
        }  # fmt: skip
        optimizer = torch.optim.SGD(session.parameters(), lr=0.1, momentum=0.9)
        functional.cross_entropy(session(x), target).backward()
        optimizer.step()
    changed = model.state_dict()["0.weight"] != before["0.weight"]
    layer = subject_of(model, x).graph.layer_by_name["0"]
    assert torch.equal(changed, mask_of(layer, drawn["0"]))
    assert torch.equal(model.state_dict()["0.bias"], before["0.bias"])
