"""The frozen prefix: training from its cache gives the same bits, loads no sample twice, and stops where it must."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from medyate_planner.errors import InputError
from medyate_planner.memory.mode import FUSED, UpdateMode
from medyate_planner.memory.model import MemoryModel, Updates
from medyate_planner.memory.timeline import footprint
from medyate_planner.subject import Subject, subject_of
from medyate_planner.training.batches import Batches
from medyate_planner.training.loop import fit
from medyate_planner.training.prefix import cut_prefix
from medyate_planner.training.prefix_cache import PrefixCache
from medyate_planner.training.prefixed import PrefixedTraining, Samples, check_cacheable
from medyate_planner.training.recipe import Recipe
from medyate_planner.training.session import Session

BATCH, COUNT, EPOCHS = 4, 18, 4


class Plain(nn.Module):
    """The reach begins at a residual block: one value is read by its first layer, another by the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.c = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.norm(self.a(x)), inplace=True)
        x = x + torch.relu(self.c(functional.relu(self.b(x), inplace=True)))
        return self.head(x.reshape(x.size(0), -1))


class Windows(nn.Module):
    """Before the reach the batch is merged with windows, and the memory of a value has gaps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))[:, :, :4, :4]
        x = x.view(-1, 8, 2, 2, 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, 8)
        return self.head(torch.relu(self.c(x)).view(-1, 4, 4, 8).mean((1, 2)))


class Pair(nn.Module):
    """Two inputs, one of which the reach reads directly; two outputs, one of which the loss does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.head = nn.Parameter(torch.randn(6)), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.a * x)
        return {"logits": self.head(torch.relu(self.c(hidden) * scale)), "hidden": hidden}


class Words(nn.Module):
    """Integers come in; positions do not depend on the sample."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(20, 8), nn.Embedding(6, 8)
        self.c, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.tokens(x))
        x = x + torch.relu(self.c(x + self.places(torch.arange(x.shape[1]))))
        return self.head(x.transpose(0, 1).mean(0))


class Dropping(nn.Module):
    """Dropout inside the reach, or before it."""

    def __init__(self, *, before: bool) -> None:
        super().__init__()
        self.a, self.c, self.head = nn.Parameter(torch.randn(6)), nn.Linear(6, 8), nn.Linear(8, 5)
        self.first, self.last = nn.Dropout(0.5 if before else 0.0), nn.Dropout(0.5)
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a * x)
        x = self.first(x) if self.before else x
        return self.head(self.last(torch.relu(self.c(x))))


class Placed(nn.Module):
    """A sample's value depends on its place in the batch, as a matrix product's rounding may; `c` is in the reach."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.head = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1e-6 * torch.arange(x.shape[0]).unsqueeze(1)
        return self.head(torch.relu(self.c(x)))


class First(nn.Module):
    """The reach begins at the input."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.head = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.c(x)))


class Rewriting(nn.Module):
    """A layer of the reach is given a value that is changed in place later, under the name of a view."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.c(x)
        return self.head(y + x.view(-1, 2, 4).relu_().view(-1, 8))


def random(*shape: int) -> Tensor:
    return torch.randn(COUNT, *shape, generator=torch.Generator().manual_seed(0))


IMAGES, VECTORS = random(3, 6, 6), random(6)
TOKENS = torch.randint(0, 20, (COUNT, 6), generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, its samples, how many values there are at the edge of the reach of layer `c`, and how it is trained."""

    factory: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...]
    edges: int
    dropout: str = "off"
    mode: UpdateMode = FUSED
    channels_last: bool = False


CASES = {
    "plain": Case(factory=Plain, inputs=(IMAGES,), edges=2),
    "channels_last": Case(
        factory=lambda: Plain().to(memory_format=torch.channels_last), inputs=(IMAGES,), edges=2, channels_last=True
    ),
    "bfloat16": Case(factory=lambda: Plain().to(torch.bfloat16), inputs=(IMAGES,), edges=2),
    "adamw": Case(
        factory=Plain, inputs=(IMAGES,), edges=2, mode=UpdateMode(update="optimizer", optimizer="adamw", accumulation=2)
    ),
    "windows": Case(factory=Windows, inputs=(IMAGES,), edges=1),
    "pair": Case(factory=Pair, inputs=(VECTORS, random(6)), edges=2),
    "words": Case(factory=Words, inputs=(TOKENS,), edges=2),
    "dropout": Case(factory=lambda: Dropping(before=False), inputs=(VECTORS,), edges=1, dropout="keep"),
}
all_cases = pytest.mark.parametrize("name", CASES)


@dataclass
class Source:
    """A training set that counts what is loaded; `noise` makes samples other ones in every epoch."""

    inputs: tuple[Tensor, ...]
    channels_last: bool = False
    noise: float = 0.0
    loaded: list[int] = field(default_factory=list)

    def order(self, epoch: int) -> list[list[int]]:
        order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(epoch)).tolist()
        return [order[start : start + BATCH] for start in range(0, COUNT - BATCH + 1, BATCH)]

    def load(self, epoch: int, chosen: Sequence[Sequence[int]]) -> Iterable[tuple[Any, Any]]:
        for places in chosen:
            self.loaded += places
            batch = [t[list(places)] for t in self.inputs]
            if self.noise:
                batch[0] = batch[0] + self.noise * epoch
            if self.channels_last:
                batch[0] = batch[0].contiguous(memory_format=torch.channels_last)
            yield (batch[0] if len(batch) == 1 else tuple(batch)), torch.tensor(places) % 5

    def test(self) -> Iterable[tuple[Any, Any]]:
        return self.load(0, ())

    @property
    def samples(self) -> Samples:
        return Samples(count=COUNT, order=self.order, load=self.load, test=self.test, steps_per_epoch=COUNT // BATCH)

    @property
    def batches(self) -> Batches:
        return Batches(
            train=lambda epoch: self.load(epoch, self.order(epoch)), test=self.test, steps_per_epoch=COUNT // BATCH
        )


def made(case: Case) -> Subject:
    torch.manual_seed(0)
    model = case.factory().eval()
    examples = tuple(t[:BATCH] for t in case.inputs)
    if case.channels_last:
        examples = (examples[0].contiguous(memory_format=torch.channels_last),)
    if next(model.parameters()).dtype == torch.bfloat16:
        examples = tuple(t.to(torch.bfloat16) for t in examples)
    return subject_of(model, examples, dropout=case.dropout)


UPDATES = Updates(quotas={"c": 3}, full=frozenset({"head"}), biases=frozenset({"c"}))


def open_session(subject: Subject, case: Case) -> Session:
    return Session(
        subject.model,
        subject.traced,
        subject.graph,
        UPDATES,
        lambda interval: {"c": [interval % 3, 3 + interval % 2, 5]},
        mode=case.mode,
    )


def recipe(case: Case, epochs: int = EPOCHS) -> Recipe:
    return Recipe(epochs=epochs, lr=0.05, seed=1, accumulation=case.mode.accumulation)


def trained(
    case: Case, folder: Path | None, source: Source | None = None
) -> tuple[dict[str, Tensor], list[Any], list[str]]:
    """The weights after training, each epoch's figures but for the seconds, and what was told; cached in a folder."""
    subject, told = made(case), []
    source = source or Source(case.inputs, case.channels_last)
    with open_session(subject, case) as session:
        if folder is None:
            epochs = list(fit(session, source.batches, subject.loss, recipe(case)))
        else:
            cached = PrefixedTraining(session, source.samples, folder, facts={}, tell=told.append)
            epochs = list(fit(session, cached.batches, subject.loss, recipe(case)))
            cached.finish()
    figures = [
        (e.metrics.train_loss, e.metrics.measured_training_bytes, e.metrics.measured_saved_bytes) for e in epochs
    ]
    return {n: t.clone() for n, t in subject.model.state_dict().items()}, figures, told


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []


@all_cases
def test_training_from_the_cache_gives_the_same_bits_and_bytes(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    before = made(case)
    source = Source(case.inputs, case.channels_last)
    weights, figures, told = trained(case, tmp_path / "prefix", source)
    expected, expected_figures, _ = trained(case, None)
    assert_same(weights, expected)
    assert figures == expected_figures
    memory = MemoryModel(before.graph, loss=before.memory.loss, loss_cost=before.memory.loss_cost, mode=case.mode)
    assert {figure[1] for figure in figures} == {footprint(memory, UPDATES).training_bytes}
    assert told == []
    assert not (tmp_path / "prefix").exists()
    assert any(not torch.equal(tensor, weights[key]) for key, tensor in before.model.state_dict().items())


@all_cases
def test_samples_are_loaded_once_but_for_a_comparison(name: str, tmp_path: Path) -> None:
    case, source = CASES[name], Source(CASES[name].inputs, CASES[name].channels_last)
    trained(case, tmp_path / "prefix", source)
    epoch = COUNT - COUNT % BATCH
    first, later = source.loaded[:epoch], source.loaded[epoch:]
    assert sorted(first) == sorted(place for batch in source.order(0) for place in batch)
    compared = next(b for e in range(1, EPOCHS) for b in source.order(e) if set(b) <= set(first))
    seen: set[int] = set(first)
    expected = []
    for number in range(1, EPOCHS):
        batches = source.order(number)
        missing = [b for b in batches if not set(b) <= seen]
        expected += [b for b in batches if b in missing or (b == compared and number == 1)]
        seen |= {place for batch in missing for place in batch}
    assert later == [place for batch in expected for place in batch]
    assert len(later) < epoch * (EPOCHS - 1) / 2


@all_cases
def test_suffix_of_the_edges_is_the_lean_graph(name: str) -> None:
    case = CASES[name]
    subject = made(case)
    x = subject.traced.examples(BATCH)[0]
    with open_session(subject, case) as session:
        session.resample(0)
        cut = cut_prefix(session)
        told: dict[str, Tensor] = {}
        recorded = cut.recording(lambda edge, value: told.__setitem__(edge, value.clone()))
        outputs = []
        for run in (session.lean, recorded):
            torch.manual_seed(0)
            outputs.append(run(*x))
        torch.manual_seed(0)
        rest = cut.suffix(lambda edge, places: told[edge][places])
        outputs.append(session.lean.graph.process_outputs(rest(torch.arange(BATCH))))
    assert len(cut.edges) == case.edges
    assert told.keys() == {edge.name for edge in cut.edges}
    assert [edge.sample_bytes for edge in cut.edges] == [told[e.name].nbytes // BATCH for e in cut.edges]
    flat = [torch.utils._pytree.tree_leaves(output) for output in outputs]
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*flat, strict=True))


def test_prefix_holds_the_weights_of_what_is_skipped() -> None:
    with open_session(made(CASES["plain"]), CASES["plain"]) as session:
        cut = cut_prefix(session)
    names = {"a.weight", "a.bias", "b.weight", "b.bias", *(f"norm.{n}" for n in ("weight", "bias"))}
    assert cut.weights.keys() == names | {"norm.running_mean", "norm.running_var"}
    assert cut.sample_bytes == 2 * 8 * 36 * 4


def test_going_on_within_an_epoch_gives_the_same_bits(tmp_path: Path) -> None:
    """Another process takes the folder over; what was not confirmed is made again."""
    case = CASES["plain"]
    expected, _, _ = trained(case, None)
    source = Source(case.inputs)
    subject = made(case)
    with open_session(subject, case) as session:
        cached = PrefixedTraining(session, source.samples, tmp_path / "prefix", facts={})
        epochs = fit(session, cached.batches, subject.loss, recipe(case))
        first = next(epochs)
        kept = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
        next(epochs)
    again = made(case)
    again.model.load_state_dict(kept)
    source.loaded.clear()
    with open_session(again, case) as session:
        cached = PrefixedTraining(session, source.samples, tmp_path / "prefix", facts={})
        assert "samples kept before" in cached.describe()
        for _ in fit(session, cached.batches, again.loss, recipe(case), resume=first.checkpoint):
            pass
        cached.finish(keep=True)
    assert_same(dict(again.model.state_dict()), expected)
    assert len(source.loaded) < COUNT
    assert (tmp_path / "prefix" / "prefix.json").is_file()


def test_batches_from_the_middle_of_an_epoch_are_those_of_the_whole(tmp_path: Path) -> None:
    case, source = CASES["plain"], Source(CASES["plain"].inputs)
    with open_session(made(case), case) as session:
        cached = PrefixedTraining(session, source.samples, tmp_path / "prefix", facts={})
        targets = [target.tolist() for _, target in cached.batches.begin(2, 0)]
        assert [target.tolist() for _, target in cached.batches.begin(2, 3)] == targets[3:]


def test_samples_that_change_are_noticed_and_trained_as_they_are(tmp_path: Path) -> None:
    case = CASES["plain"]
    weights, _, told = trained(case, tmp_path / "prefix", Source(case.inputs, noise=0.1))
    expected, _, _ = trained(case, None, Source(case.inputs, noise=0.1))
    assert_same(weights, expected)
    assert len(told) == 1
    assert "not used: a sample has not the same values twice" in told[0]


def test_values_that_depend_on_the_place_in_the_batch_are_noticed_at_the_first(tmp_path: Path) -> None:
    case = Case(factory=Placed, inputs=(VECTORS,), edges=1)
    weights, _, told = trained(case, tmp_path / "prefix")
    assert_same(weights, trained(case, None)[0])
    assert len(told) == 1
    assert "not used: add of a sample depends on its place" in told[0]


def test_targets_without_samples_are_trained_as_they_are(tmp_path: Path) -> None:
    case, told = CASES["plain"], []
    source = Source(case.inputs)
    odd = Samples(**{**vars(source.samples), "load": lambda e, c: ((x, {"a": 1}) for x, _ in source.load(e, c))})
    with open_session(made(case), case) as session:
        cached = PrefixedTraining(session, odd, tmp_path / "prefix", facts={}, tell=told.append)
        assert [target for _, target in cached.batches.train(0)] == [{"a": 1}] * (COUNT // BATCH)
    assert "targets are not tensors" in told[0]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (Case(factory=First, inputs=(VECTORS,), edges=0), "begins at the model's inputs"),
        (
            Case(factory=lambda: Dropping(before=True), inputs=(VECTORS,), edges=0, dropout="keep"),
            "random numbers before what is trained",
        ),
        (Case(factory=Rewriting, inputs=(VECTORS,), edges=0), "in place"),
    ],
)
def test_a_prefix_that_can_not_be_kept_is_refused(case: Case, words: str) -> None:
    updates = Updates(quotas={"c": 1}, full=frozenset({"head"}))
    subject = made(case)
    with (
        Session(subject.model, subject.traced, subject.graph, updates, lambda _interval: {"c": [0]}) as session,
        pytest.raises(InputError, match=words),
    ):
        cut_prefix(session)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"augment": "flip"}, "samples that stay the same"),
        ({"norm": "train"}, "frozen norms"),
        ({"pool": ("a",)}, "fixed set of layers"),
    ],
)
def test_what_gives_a_sample_other_values_is_refused(facts: dict[str, Any], words: str) -> None:
    sound: dict[str, Any] = {"augment": "none", "norm": "frozen", "pool": None}
    check_cacheable(**sound)
    with pytest.raises(InputError, match=words):
        check_cacheable(**{**sound, **facts})


def cache(folder: Path, fingerprint: str = "a", samples: int = 5) -> PrefixCache:
    return PrefixCache(folder, samples=samples, sample_bytes=48, fingerprint=fingerprint)


LAYOUTS = {
    "contiguous": (torch.randn(3, 4, 2, 2), 0),
    "channels_last": (torch.randn(3, 4, 2, 2).contiguous(memory_format=torch.channels_last), 0),
    "one pixel": (torch.randn(3, 1, 1, 4).permute(0, 3, 1, 2), 0),
    "batch in the middle": (torch.randn(3, 4, 5).transpose(0, 1), 1),
    "bfloat16": (torch.randn(3, 5).to(torch.bfloat16), 0),
    "integers": (torch.tensor([7, 0, 3]), 0),
    "bits": (torch.eye(3, 4) > 0, 0),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_values_come_back_as_they_were(name: str, tmp_path: Path) -> None:
    value, axis = LAYOUTS[name]
    kept = cache(tmp_path / "c")
    assert kept.write("v", [4, 0, 2], value, axis)
    kept.confirm([4, 0, 2])
    kept.commit()
    for found in (kept, cache(tmp_path / "c")):
        same = found.read("v", [4, 0, 2])
        assert torch.equal(same, value)
        assert (same.dtype, same.stride(), same.shape) == (value.dtype, value.stride(), value.shape)
        assert torch.equal(found.read("v", [2, 4]), value.index_select(axis, torch.tensor([2, 0])))
        assert found.has([0, 2, 4])
        assert not found.has([0, 1])
        assert found.same("v", [4, 0, 2], value, axis)
        assert not found.same("v", [0, 4, 2], value, axis)


def test_values_with_gaps_or_of_another_form_are_not_kept(tmp_path: Path) -> None:
    kept = cache(tmp_path / "c")
    assert not kept.write("v", [0, 1], torch.randn(2, 4)[:, :2])
    assert kept.write("v", [0, 1], torch.randn(2, 4))
    assert not kept.write("v", [0, 1], torch.randn(2, 5))
    assert not kept.write("v", [0, 1], torch.randn(2, 4).double())


def test_what_was_not_confirmed_is_not_found_again(tmp_path: Path) -> None:
    kept = cache(tmp_path / "c")
    kept.write("v", [0, 1], torch.randn(2, 4))
    kept.confirm([0, 1])
    assert not cache(tmp_path / "c").has([0])
    kept = cache(tmp_path / "c")
    kept.write("v", [0, 1], torch.randn(2, 4))
    kept.confirm([0, 1])
    kept.commit()
    kept.write("v", [2], torch.randn(1, 4))
    kept.confirm([2])
    assert [cache(tmp_path / "c").has([place]) for place in range(4)] == [True, True, False, False]


@pytest.mark.parametrize(
    ("change", "stale"), [("fingerprint", True), ("samples", True), ("cut", False), ("done", False)]
)
def test_what_is_stale_or_damaged_is_made_again(change: str, stale: bool, tmp_path: Path) -> None:
    kept = cache(tmp_path / "c")
    kept.write("v", [0, 1], torch.randn(2, 4))
    kept.confirm([0, 1])
    kept.commit()
    file = tmp_path / "c" / "0.bin"
    if change == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    if change == "done":
        (tmp_path / "c" / "done.npy").write_bytes(b"nonsense")
    again = cache(tmp_path / "c", "b" if change == "fingerprint" else "a", 6 if change == "samples" else 5)
    assert (again.count, again.was_stale) == (0, stale)
    assert not file.exists()


def test_fingerprint_is_of_weights_before_the_reach_and_of_facts(tmp_path: Path) -> None:
    case, source = CASES["plain"], Source(CASES["plain"].inputs)

    def fingerprint(facts: dict[str, Any], change: str | None = None) -> str:
        subject = made(case)
        if change is not None:
            with torch.no_grad():
                subject.model.state_dict()[change].view(-1)[0] += 1
        with open_session(subject, case) as session:
            return PrefixedTraining(session, source.samples, tmp_path / "c", facts=facts).cache.fingerprint

    first = fingerprint({"data": "a"})
    assert first == fingerprint({"data": "a"}) == fingerprint({"data": "a"}, "c.weight")
    assert len({first, fingerprint({"data": "b"}), fingerprint({"data": "a"}, "norm.running_mean")}) == 3


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.txt").write_text("all of it")
    with pytest.raises(InputError, match="not of a run of ours"):
        cache(tmp_path / "c")
    assert (tmp_path / "c" / "thesis.txt").read_text() == "all of it"


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs 5,000,000,000,000,000 B on disk"):
        PrefixCache(tmp_path / "c", samples=5, sample_bytes=10**15, fingerprint="a")
    assert not (tmp_path / "c").exists()
