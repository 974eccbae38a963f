"""The plan file: identity through JSON, and one line that names the key for everything wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import Sketch
from hypothesis import given, settings
from hypothesis import strategies as st

from medyate_planner.errors import InputError, PlanMismatchError
from medyate_planner.graph import ModelGraph
from medyate_planner.memory.model import Updates
from medyate_planner.planning.plan import (
    ImportanceRef,
    ModelInput,
    Plan,
    PlannedLayer,
    PlannedModel,
    Predicted,
    Sampling,
)

COUNT = st.integers(0, 2**53)
NAME = st.text(min_size=1, max_size=12)


def small_graph(*, channels: int = 4, name: str = "a") -> ModelGraph:
    sketch = Sketch()
    x = sketch.conv(sketch.input(channels, 2, 2), 4, name=name, bias=True)
    return sketch.build([sketch.linear(sketch.pooled(x), 3, name="head", bias=True)], head=["head"])


def small_plan(**changes: Any) -> Plan:
    facts: dict[str, Any] = {
        "model": PlannedModel(
            fingerprint=small_graph().fingerprint,
            num_parameters=35,
            inputs=(ModelInput(shape=(4, 2, 2), dtype="float32"),),
        ),
        "batch_size": 2,
        "loss_outputs": small_graph().outputs,
        "budget_bytes": 1000,
        "scope": "training",
        "strategy": "optimal",
        "status": "optimal",
        "gap_ratio": 0.0,
        "objective": 1.5,
        "predicted": Predicted(**dict.fromkeys(Predicted.model_fields, 7)),
        "layers": (
            PlannedLayer(name="a", kind="conv", channels=4, quota=3),
            PlannedLayer(name="head", kind="linear", channels=4, quota=4, head=True),
        ),
        "biases": ("a",),
        "importance": ImportanceRef(source="gradients"),
    }
    return Plan(**{**facts, **changes})


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    layers = []
    for name in draw(st.lists(NAME, max_size=4, unique=True)):
        channels = draw(st.integers(1, 4096))
        head = draw(st.booleans())
        quota = channels if head else draw(st.none() | st.integers(1, channels))
        kind = draw(st.sampled_from(["conv", "depthwise", "grouped", "linear"]))
        layers.append(PlannedLayer(name=name, kind=kind, channels=channels, quota=quota, head=head))
    pool = [layer for layer in layers if layer.quota is None]
    drawn = st.fixed_dictionaries({layer.name: st.integers(1, layer.channels) for layer in pool})
    draws = tuple(draw(st.lists(drawn, min_size=1, max_size=3))) if pool else None
    number = st.floats(allow_nan=False, allow_infinity=False)
    some_text, some_count = st.none() | NAME, st.none() | COUNT
    inputs = st.builds(
        ModelInput,
        shape=st.lists(st.integers(0, 999), max_size=4).map(tuple),
        dtype=st.sampled_from(["float32", "bfloat16", "int64"]),
        name=some_text,
    )
    return small_plan(
        model=PlannedModel(
            spec=draw(some_text),
            fingerprint=draw(NAME),
            num_parameters=draw(COUNT),
            inputs=tuple(draw(st.lists(inputs, max_size=2))),
            weights=draw(some_text),
            num_classes=draw(some_count),
            input_shape=draw(st.none() | st.lists(st.integers(1, 9), max_size=3).map(tuple)),
            head_pattern=draw(some_text),
        ),
        batch_size=draw(st.integers(1, 1024)),
        budget_bytes=draw(st.integers(1, 2**53)),
        scope=draw(st.sampled_from(["update", "training", "peak"])),
        status=draw(st.sampled_from(["optimal", "feasible"])),
        gap_ratio=draw(number),
        objective=draw(number),
        objective_bound=draw(st.none() | number),
        predicted=Predicted(**{name: draw(COUNT) for name in Predicted.model_fields}),
        layers=tuple(layers),
        biases=tuple(draw(st.lists(NAME, max_size=3, unique=True))),
        sampling=Sampling(
            method=draw(st.sampled_from(["uniform", "weighted", "top", "static"])),
            seed=draw(COUNT),
            alpha=draw(st.floats(0, 1e6)),
            pool=tuple(layer.name for layer in pool) if pool else None,
            draws=draws,
            boost=draw(st.floats(0, 1)),
        ),
        importance=ImportanceRef(source=draw(NAME), file=draw(some_text), sha256=draw(some_text)),
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(plans())
def test_plan_json_round_trip_is_the_identity(plan: Plan) -> None:
    again = Plan.from_dict(json.loads(plan.to_json()))
    assert again == plan
    assert again.to_json() == plan.to_json()
    assert json.loads(plan.to_json()) == plan.to_dict()


def test_plan_file_round_trip_and_force(tmp_path: Path) -> None:
    path = small_plan().save(tmp_path / "run" / "plan.json")
    assert Plan.load(path) == Plan.load(str(path)) == small_plan()
    with pytest.raises(InputError, match="--force"):
        small_plan(batch_size=9).save(path, force=False)
    assert Plan.load(path).batch_size == 2
    assert path.read_text().endswith("}\n")


def test_plan_has_the_promised_keys() -> None:
    data = small_plan().to_dict()
    assert {"schema_version", "model", "budget_bytes", "scope", "strategy", "update", "status", "gap_ratio"} <= set(
        data
    )
    assert {"objective", "predicted", "layers", "biases", "sampling"} <= set(data)
    assert {"update_bytes", "training_bytes", "live_peak_bytes", "saved_bytes", "gradients_bytes"} <= set(
        data["predicted"]
    )
    assert {"optimizer_bytes", "passthrough_bytes", "loss_bytes", "elements"} <= set(data["predicted"])
    assert set(data["layers"][0]) >= {"name", "kind", "channels", "quota"}
    assert set(data["sampling"]) >= {"method", "seed", "interval", "pool"}


def test_plan_updates_keep_the_head_apart() -> None:
    assert small_plan().updates() == Updates(quotas={"a": 3}, biases=frozenset({"a"}), full=frozenset({"head"}))


def set_to(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


def drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (set_to("schema_version", value=2), ["expected schema version 1, got 2"]),
        (set_to("schema_version", value="1"), ["expected schema version 1, got 1"]),
        (drop("schema_version"), ["expected schema version 1, got None"]),
        (set_to("kind", value="report"), ["expected a plan (key kind)"]),
        (drop("kind"), ["expected a plan (key kind)"]),
        (set_to("colour", value="red"), ["colour", "Extra inputs are not permitted", "'red'"]),
        (set_to("layers", 0, "colour", value=1), ["layers.0.colour"]),
        (set_to("layers", 0, "quota", value=5), ["layers.0", "layer a: quota 5 does not fit 4 channels"]),
        (set_to("layers", 1, "quota", value=3), ["layers.1", "layer head: quota 3 does not fit 4 channels"]),
        (set_to("layers", 0, "quota", value=0), ["layers.0.quota", "greater than or equal to 1", "got 0"]),
        (set_to("layers", 0, "quota", value=None), ["layer a: a quota of null is for layers of sampling.pool"]),
        (set_to("sampling", "pool", value=["a"]), ["sampling", "pool and draws belong together"]),
        (set_to("sampling", "method", value="fixed"), ["sampling", "method fixed and channels belong together"]),
        (set_to("layers", 0, "quota", value=2.5), ["layers.0.quota"]),
        (set_to("layers", 0, "kind", value="pool"), ["layers.0.kind", "'pool'"]),
        (set_to("layers", value="all"), ["layers", "'all'"]),
        (set_to("budget_bytes", value=0), ["budget_bytes"]),
        (set_to("budget_bytes", value="512kB"), ["budget_bytes", "512kB"]),
        (set_to("scope", value="all"), ["scope", "'all'"]),
        (set_to("status", value="best"), ["status", "'best'"]),
        (set_to("update", value="late"), ["update", "'late'"]),
        (set_to("optimizer", value="adam"), ["optimizer adam needs update mode optimizer"]),
        (set_to("sampling", "method", value="a\nb"), ["sampling.method"]),
        (drop("predicted", "training_bytes"), ["predicted.training_bytes", "Field required"]),
        (drop("model", "fingerprint"), ["model.fingerprint", "Field required"]),
    ],
)
def test_plan_load_names_the_wrong_key_in_one_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], parts: list[str]
) -> None:
    data = small_plan().to_dict()
    change(data)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InputError) as caught:
        Plan.load(path)
    message = caught.value.message
    assert message.startswith(f"plan {path}: ")
    assert "\n" not in message
    assert all(part in message for part in parts), message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_plan_load_of_a_truncated_file_says_where(tmp_path: Path, share: float) -> None:
    text = small_plan().to_json()
    path = tmp_path / "plan.json"
    path.write_text(text[: int(len(text) * share)])
    with pytest.raises(InputError, match=r"not complete JSON \(line \d+, column \d+: .*\); make it again") as caught:
        Plan.load(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("text", ["", "[]", "3", '"plan"', "null"])
def test_plan_load_of_something_else(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"not complete JSON|expected a plan \(key kind\)"):
        Plan.load(path)


def test_plan_load_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"plan .*nothing\.json: no such file"):
        Plan.load(tmp_path / "nothing.json")


def test_plan_check_refuses_another_model_and_says_what_differs() -> None:
    small_plan().check(small_graph())
    with pytest.raises(PlanMismatchError, match="a has 5 channels, the plan expects 4") as caught:
        small_plan().check(small_graph(channels=5))
    assert small_graph().fingerprint[:12] in caught.value.message
    assert small_graph(channels=5).fingerprint[:12] in caught.value.message
    assert caught.value.exit_code == 2
    with pytest.raises(PlanMismatchError, match="the model has no layer 'a'"):
        small_plan().check(small_graph(name="b"))


def drawn_plan(**sampling: Any) -> dict[str, Any]:
    """A plan whose layer `a` is drawn anew each interval."""
    data = small_plan().to_dict()
    data["layers"][0]["quota"] = None
    data["sampling"] |= {"pool": ["a"], "draws": [{"a": 1}, {"a": 4}, {}], **sampling}
    return data


def test_plan_with_draws_gives_the_quotas_of_an_interval() -> None:
    plan = Plan.from_dict(drawn_plan())
    assert [plan.quotas(interval) for interval in range(4)] == [{"a": 1}, {"a": 4}, {}, {"a": 1}]
    assert plan.updates(1) == Updates(quotas={"a": 4}, biases=frozenset({"a"}), full=frozenset({"head"}))


@pytest.mark.parametrize(
    ("sampling", "text"),
    [
        ({"draws": [{"a": 5}]}, "sampling.draws: a: 5 does not fit"),
        ({"draws": [{"b": 1}]}, "sampling.draws: b: 1 does not fit"),
        ({"draws": []}, "pool and draws belong together"),
        ({"pool": ["a", "head"]}, "layer head: quota|layer head: a quota of null"),
    ],
)
def test_plan_refuses_draws_that_do_not_fit_its_layers(sampling: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Plan.from_dict(drawn_plan(**sampling))


def test_plan_refuses_what_can_not_be_trained() -> None:
    for change, text in (
        (set_to("biases", value=["a", "a"]), "biases: one is listed twice"),
        (set_to("sampling", "seed", value=10**30), "sampling.seed"),
    ):
        data = small_plan().to_dict()
        change(data)
        with pytest.raises(InputError, match=text):
            Plan.from_dict(data)
    data = small_plan().to_dict()
    data["sampling"] |= {"method": "fixed", "channels": {"a": [0, 1, 2], "head": [0, 1, 2, 3]}}
    with pytest.raises(InputError, match="expected the layers that are updated, the head excepted"):
        Plan.from_dict(data)
    with pytest.raises(PlanMismatchError, match="no output 'foo'"):
        small_plan(loss_outputs=("foo",)).check(small_graph())


@pytest.mark.parametrize(
    ("channels", "text"),
    [([0, 1], "as many different channels"), ([0, 1, 1], "as many different"), ([0, 1, 4], "channels of 0 to 3")],
)
def test_plan_refuses_fixed_channels_that_do_not_fit(channels: list[int], text: str) -> None:
    data = small_plan().to_dict()
    data["sampling"] |= {"method": "fixed", "channels": {"a": channels}}
    with pytest.raises(InputError, match=text):
        Plan.from_dict(data)


def test_plan_refuses_a_layer_listed_twice() -> None:
    data = small_plan().to_dict()
    data["layers"].append({**data["layers"][0], "quota": 1})
    with pytest.raises(InputError):
        Plan.from_dict(data)


def test_plan_load_of_nested_nonsense(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("[" * 100_000)
    with pytest.raises(InputError):
        Plan.load(tmp_path / "plan.json")
