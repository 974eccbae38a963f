"""Deltas: original + delta = final weights bit for bit, of every kind of layer; anything else is refused whole."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from medyate_planner import InputError, plan, prepare
from medyate_planner.planning.plan import Plan
from medyate_planner.subject import subject_of
from medyate_planner.trace import ExampleInputs
from medyate_planner.training.changes import RunWeights, delta_of
from medyate_planner.training.delta import Delta, apply_delta
from medyate_planner.training.parts import ROWS, Part, channel_rows, tensor_hash
from medyate_planner.training.run import weights_of

HASH = "0" * 64


class Pictures(nn.Module):
    """Convolutions of every kind, and norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(16, 12, 3, padding=1, groups=4)
        self.up, self.group = nn.ConvTranspose2d(12, 10, 2, stride=2), nn.GroupNorm(2, 10)
        self.mix, self.layer = nn.Linear(10, 9), nn.LayerNorm(9)
        self.head = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.grouped(torch.relu(self.depthwise(torch.relu(self.norm(self.stem(x)))))))
        x = torch.relu(self.group(self.up(x))).mean((2, 3))
        return self.head(self.layer(self.mix(x)))


class Words(nn.Module):
    """Embeddings, one of which is the head's weight too, or neither."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(20, 8), nn.Embedding(5, 8)
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 20, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.mix(self.tokens(x) + self.places(torch.arange(x.shape[1]))))).mean(1)


class Projections(nn.Module):
    """A product with a parameter whose rows are the input channels, as in GPT-2, and which is no module's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.product, self.shift = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(8))
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, 0].flatten(1)[:, :6]
        return self.head(torch.relu(self.mix(torch.relu(torch.addmm(self.shift, x, self.product)))))


PICTURES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, 20, (4, 5), generator=torch.Generator().manual_seed(0))
CASES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "pictures": (Pictures, PICTURES),
    "pictures, channels_last": (
        lambda: Pictures().to(memory_format=torch.channels_last),
        PICTURES.contiguous(memory_format=torch.channels_last),
    ),
    "pictures, bfloat16": (lambda: Pictures().to(torch.bfloat16), PICTURES.to(torch.bfloat16)),
    "pictures, norm train": (Pictures, PICTURES),
    "pictures, adamw": (Pictures, PICTURES),
    "projections": (Projections, PICTURES),
    "words": (lambda: Words(tied=False), TOKENS),
    "words, tied": (lambda: Words(tied=True), TOKENS),
}
all_cases = pytest.mark.parametrize("case", CASES)


def make(case: str) -> tuple[nn.Module, ExampleInputs]:
    torch.manual_seed(3)
    factory, x = CASES[case]
    return factory().eval(), x


def trained(case: str, *, head: str = "full", max_quota: int = 2) -> tuple[nn.Module, nn.Module, Delta, Plan]:
    """The original, the model after three intervals, and the delta between them."""
    original, x = make(case)
    model = copy.deepcopy(original)
    subject = subject_of(model, x, norm="train" if "norm train" in case else "frozen")
    request = {"buy_norm_scales": "norm train" not in case, "max_quota": max_quota, "head_mode": head}
    optimizer_name = "adamw" if "adamw" in case else "sgd"
    decided = plan(subject, budget="10MB", optimizer=optimizer_name, request=request)
    channels: dict[str, set[int]] = {}
    with prepare(model, decided) as session:
        session.set_lr(0.1, clip=1.0)
        stepped = [torch.optim.AdamW(session.parameters(), lr=0.1)] if optimizer_name == "adamw" else []
        for interval in range(3):
            for name, drawn in session.resample(interval).items():
                channels.setdefault(name, set()).update(drawn)
            functional.cross_entropy(session(x), torch.arange(4)).backward()
            for optimizer in stepped:
                optimizer.step()
                optimizer.zero_grad()
    weights = RunWeights(state={n: t.clone() for n, t in weights_of(model).items()}, finished=True)
    meta = copy.deepcopy(original).to("meta")
    if "tied" in case:
        meta.head.weight = meta.tokens.weight
    delta = delta_of(meta, subject.graph, decided, weights, channels, plan_sha256=HASH, warmed=())
    return original, model, delta, decided


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(tensor_hash(ours[name]) == tensor_hash(theirs[name]) for name in ours)


@pytest.mark.parametrize(("shape", "groups"), [((6, 4, 3, 3), 1), ((8, 1, 3, 3), 4), ((6, 2, 3, 3), 3), ((3, 6), 1)])
def test_channel_rows_are_what_a_channel_owns(shape: tuple[int, ...], groups: int) -> None:
    """The oracle: where a weight's gradient is not zero if all input channels but one are silent."""
    numbers = torch.arange(1.0, torch.Size(shape).numel() + 1).view(shape)
    rows = channel_rows(numbers, groups)
    for channel in range(shape[1] * groups):
        weight = torch.ones(shape, requires_grad=True)
        x = torch.zeros(1, shape[1] * groups, *[5] * (len(shape) - 2))
        x[:, channel] = 1.0
        y = functional.linear(x, weight) if len(shape) == 2 else functional.conv2d(x, weight, groups=groups)
        (gradient,) = torch.autograd.grad(y.sum(), weight)
        assert sorted(rows[channel].tolist()) == numbers[gradient != 0].tolist()


def test_channel_rows_of_transposed_convolutions_and_norms_are_the_first_axis() -> None:
    weight = torch.randn(5, 3, 2, 2)
    assert torch.equal(channel_rows(weight, ROWS), weight.flatten(1))
    assert channel_rows(torch.randn(7), ROWS).shape == (7, 1)


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((6, 4, 3, 3), 1), ((8, 1, 3, 3), 4), ((6, 2, 3), 3), ((3, 6), 1), ((5, 3, 2, 2), ROWS), ((7,), ROWS)],
)
def test_part_carries_its_channels_and_no_others(shape: tuple[int, ...], groups: int) -> None:
    before, after = torch.randn(shape), torch.randn(shape)
    part = Part.of(after, [2, 1], groups)
    made = part.onto(before)
    assert part.channels.tolist() == [1, 2]
    for channel, row in enumerate(channel_rows(made, groups)):
        assert torch.equal(row, channel_rows(after if channel in (1, 2) else before, groups)[channel])
    assert part.others_hash(made) == part.others_hash(before) != part.others_hash(after)


@all_cases
@pytest.mark.parametrize("head", ["full", "channels"])
def test_original_and_delta_make_the_final_weights(case: str, head: str, tmp_path: Path) -> None:
    original, model, delta, decided = trained(case, head=head)
    kinds = {layer.kind for layer in decided.layers}
    convolutions = {"conv", "depthwise", "grouped", "transposed"} | ({"norm"} if "norm train" not in case else set())
    expected = {"words": {"embedding"}, "projections": {"transposed", "linear"}, "pictures": convolutions}
    assert kinds >= expected[case.partition(",")[0]]
    assert delta.parts
    file = delta.save(tmp_path / "delta.safetensors")
    assert not same_bits(original, model)
    apply_delta(original, file, fingerprint=delta.fingerprint)
    assert same_bits(original, model)
    apply_delta(original, file)  # once more changes nothing
    assert same_bits(original, model)


@all_cases
def test_files_make_the_final_weights(case: str, tmp_path: Path) -> None:
    original, model, delta, _ = trained(case)
    made = Delta.load(delta.save(tmp_path / "d.safetensors")).onto(original.state_dict(), where="file", from_file=True)
    assert made.keys() == model.state_dict().keys()
    assert all(tensor_hash(tensor) == tensor_hash(made[name]) for name, tensor in model.state_dict().items())
    once = {name: tensor for name, tensor in original.state_dict().items() if name != "head.weight"}
    fewer = delta.onto(once, where="file", from_file=True)
    assert ("head.weight" in fewer) == ("tied" not in case)


def test_delta_holds_what_was_trained_and_nothing_else(tmp_path: Path) -> None:
    _, _, delta, decided = trained("pictures")
    tensors = load_file(delta.save(tmp_path / "d.safetensors"))
    bought = {layer.name: layer for layer in decided.layers if not layer.head}
    for name, layer in bought.items():
        index = tensors.get(f"{name}.weight#channels")
        drawn = layer.channels if index is None else len(index)
        assert (layer.quota or 0) <= drawn <= 3 * (layer.quota or 0)
    biases = {f"{name}.bias" for name in decided.biases}
    parts = {f"{name}.weight" for name in bought if f"{name}.weight#channels" in tensors}
    full = {f"{name}.weight" for name in bought} - parts
    expected = (
        {"head.weight", "head.bias"} | biases | full | {f"{n}#{p}" for n in parts for p in ("channels", "values")}
    )
    assert tensors.keys() == expected
    assert delta.values_bytes == sum(t.nbytes for n, t in tensors.items() if not n.endswith("#channels"))


def test_statistics_of_norms_are_held_if_they_are_trained() -> None:
    statistics = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    original, _, delta, _ = trained("pictures, norm train")
    assert statistics <= delta.whole.keys()
    assert not torch.equal(delta.whole["norm.running_mean"], original.norm.running_mean)
    assert not statistics & trained("pictures")[2].whole.keys()


def test_a_warmed_head_is_held_in_full_although_bought_by_channels() -> None:
    original, x = make("pictures")
    subject = subject_of(original, x)
    decided = plan(subject, budget="10MB", request={"max_quota": 2, "head_mode": "channels"})
    weights = RunWeights(state=weights_of(original), finished=True)
    for warmed, whole in (((), False), (("head.weight",), True), (None, True)):
        delta = delta_of(original, subject.graph, decided, weights, {"head": [0, 3]}, plan_sha256=HASH, warmed=warmed)
        assert ("head.weight" in delta.whole, "head.weight" in delta.parts) == (whole, not whole)
        assert ("head.bias" in delta.whole) >= (warmed is None)


def test_a_head_from_a_new_number_of_classes_takes_the_place_of_the_files() -> None:
    original, model, delta, _ = trained("pictures")
    state = dict(original.state_dict())
    state["head.weight"], state["head.bias"] = torch.zeros(1000, 9), torch.zeros(1000)
    made = delta.onto(state, where="file", from_file=True)
    assert torch.equal(made["head.weight"], model.head.weight)
    with pytest.raises(InputError, match=r"head.(weight|bias): expected \[4.*got \[1000"):
        delta.onto(state, where="model")


def test_a_file_in_another_float_type_is_cast_as_a_loader_does() -> None:
    original, model, delta, _ = trained("pictures, bfloat16")
    state = {name: t.float() if t.is_floating_point() else t for name, t in original.state_dict().items()}
    made = delta.onto(state, where="file", from_file=True)
    assert all(tensor_hash(tensor) == tensor_hash(made[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(InputError, match="bfloat16"):
        delta.onto(state, where="model")


def test_the_counter_of_batches_does_not_matter() -> None:
    original, _, delta, _ = trained("pictures")
    state = {name: t for name, t in original.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert delta.onto(state, where="file").keys() == state.keys()


def change(model: nn.Module, name: str) -> None:
    with torch.no_grad():
        model.state_dict()[name].view(-1)[-1] += 1


def without(model: nn.Module, name: str) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, None)


REFUSED: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "another frozen buffer": (lambda m: change(m, "norm.running_var"), "norm.running_var"),
    "another channel": (lambda m: change(m, "grouped.weight"), "grouped.weight .*is not the one"),
    "lacking": (lambda m: without(m, "stem.bias"), "stem.bias"),
    "one too many": (lambda m: m.register_buffer("more", torch.zeros(1)), "more is not in the model"),
    "another shape": (lambda m: setattr(m, "head", nn.Linear(9, 5)), "head.* expected .* got "),
    "another part's shape": (lambda m: setattr(m, "stem", nn.Conv2d(3, 8, 5)), "stem.weight"),
    "another type": (lambda m: m.double(), "float64"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_another_model_is_refused_and_left_as_it_was(what: str, tmp_path: Path) -> None:
    original, _, delta, _ = trained("pictures", max_quota=1)
    file = delta.save(tmp_path / "delta.safetensors")
    spoil, words = REFUSED[what]
    spoil(original)
    before = copy.deepcopy(original)
    with pytest.raises(InputError, match=words):
        apply_delta(original, file)
    assert same_bits(original, before)


def test_another_fingerprint_is_refused(tmp_path: Path) -> None:
    original, _, delta, _ = trained("words")
    file = delta.save(tmp_path / "delta.safetensors")
    before = copy.deepcopy(original)
    with pytest.raises(InputError, match="fingerprint"):
        apply_delta(original, file, fingerprint="f" * 64)
    assert same_bits(original, before)


def test_file_is_the_same_bytes_every_time_and_not_overwritten_by_accident(tmp_path: Path) -> None:
    _, _, delta, _ = trained("pictures")
    first, second = delta.save(tmp_path / "a.safetensors"), delta.save(tmp_path / "b.safetensors")
    assert first.read_bytes() == second.read_bytes()
    again = Delta.load(first)
    assert again.save(tmp_path / "c.safetensors").read_bytes() == first.read_bytes()
    with pytest.raises(InputError, match="--force"):
        delta.save(first, force=False)


def spoilt(file: Path, **facts: object) -> Path:
    """The file with other facts in its metadata, or other tensors."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        known = json.loads(opened.metadata()["medyate"])
    tensors = load_file(file)
    tensors |= {name: value for name, value in facts.items() if isinstance(value, Tensor)}
    known |= {name: value for name, value in facts.items() if not isinstance(value, Tensor)}
    save_file(tensors, file, metadata={"medyate": json.dumps(known)})
    return file


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"kind": "importance"}, "kind delta, got 1 of importance"),
        ({"schema_version": 2}, "schema version 1"),
        ({"parts": {"stem.weight": {"shape": [8, 3, 5, 5], "groups": 1}}}, "do not fit"),
        ({"parts": {"stem.weight": {"shape": [8, 3], "groups": 3}}}, "do not fit"),
        ({"parts": {"nothing": {"shape": [8, 3], "groups": 1}}}, "do not fit"),
        ({"parts": None}, "do not fit"),
        ({"stem.weight#channels": torch.tensor([3], dtype=torch.int32)}, "do not fit"),
        ({"stem.weight#channels": torch.tensor([-1], dtype=torch.int32)}, "do not fit"),
        ({"stem.weight#channels": torch.tensor([1])}, "do not fit"),
    ],
)
def test_a_file_that_is_no_delta_is_refused(facts: dict[str, object], words: str, tmp_path: Path) -> None:
    model = Pictures()
    part = Part.of(model.stem.weight, [1], 1)
    delta = Delta(fingerprint="", plan_sha256="", whole={}, parts={"stem.weight": part}, frozen={})
    file = delta.save(tmp_path / "delta.safetensors")
    assert Delta.load(file).parts["stem.weight"].channels.tolist() == [1]
    with pytest.raises(InputError, match=words):
        Delta.load(spoilt(file, **facts))


def test_a_truncated_or_missing_file_is_refused(tmp_path: Path) -> None:
    _, _, delta, _ = trained("words")
    file = delta.save(tmp_path / "delta.safetensors")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match="can not be read"):
        Delta.load(file)
    with pytest.raises(InputError, match="no such file"):
        Delta.load(tmp_path / "none.safetensors")


def test_channels_of_another_model_are_refused() -> None:
    original, x = make("words")
    subject = subject_of(original, x)
    decided = plan(subject, budget="10MB", request={"max_quota": 2})
    weights = RunWeights(state=weights_of(original), finished=True)
    with pytest.raises(InputError, match="mix: expected channels of 0 to 7"):
        delta_of(original, subject.graph, decided, weights, {"mix": [8]}, plan_sha256=HASH)
    other = RunWeights(state={**weights.state, "more": torch.zeros(1)}, finished=True)
    with pytest.raises(InputError, match="more is in one of them"):
        delta_of(original, subject.graph, decided, other, {}, plan_sha256=HASH)
