"""The user's own numbers as importance: read as meant, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Sketch

from medyate_planner.errors import InputError
from medyate_planner.graph import ModelGraph
from medyate_planner.importance.own import from_numbers, read_numbers


def graph() -> ModelGraph:
    sketch = Sketch()
    x = sketch.conv(sketch.input(3, 2, 2), 4, name="a", bias=True)
    return sketch.build([sketch.linear(sketch.pooled(x), 3, name="head")], head=["head"])


def test_numbers_stand_for_energies() -> None:
    found = from_numbers({"a": 0.25, "a:bias": 2, "head": [1, 2, 3, 4]}, graph())
    assert found.energy["a"].tolist() == [0.25, 0.25, 0.25]
    assert found.norms["a"].tolist() == [0.5, 0.5, 0.5]
    assert found.energy["head"].tolist() == [1, 2, 3, 4]
    assert found.bias_energy == {"a": 2.0}
    assert found.fingerprint == graph().fingerprint
    assert "own numbers" in found.source


def test_what_is_not_named_is_worth_nothing() -> None:
    found = from_numbers({"head": 1}, graph())
    assert not np.any(found.energy["a"])
    assert found.bias_energy == {}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"b": 1}, "no layer 'b'"),
        ({"head:bias": 1}, "no layer 'head:bias'"),
        ({"a": [1, 2]}, "a: expected 3 numbers"),
        ({"a": -1}, "a: expected 1 number of 0"),
        ({"a": float("nan")}, "a: expected 1 number"),
        ({"a": 10**400}, "a: expected 1 number"),
        ({"a": True}, "a: expected 1 number"),
        ({"a": "much"}, "a: expected 1 number"),
        ({"a": 0, "head": 0}, "every number is 0"),
        ([], "got list"),
        ({}, "got dict"),
    ],
)
def test_other_numbers_are_refused_in_one_line(data: Any, text: str) -> None:
    with pytest.raises(InputError) as caught:
        from_numbers(data, graph())
    assert text in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_a_file_that_is_not_json_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"own\.json: not complete JSON") as caught:
        read_numbers(path, graph())
    assert "\n" not in caught.value.message


def test_a_file_is_named_as_the_source(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"a": 1}))
    assert read_numbers(path, graph()).source == "the user's own numbers (own.json)"
