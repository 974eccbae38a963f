"""The user's own numbers as importance: a JSON file `{"layer": 0.3, "other": [0.1, 0.2, …], "third:bias": 2}`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medyate_planner.errors import InputError
from medyate_planner.files import read_text
from medyate_planner.graph import Layer, ModelGraph
from medyate_planner.importance.energy import Importance, Vector

_BIAS = ":bias"
_LARGEST = 1e100  # sums and squares of larger ones would overflow


def read_numbers(path: Path, graph: ModelGraph) -> Importance:
    """Read such a file.

    Raises:
        InputError: missing, not JSON, or not such numbers for this model.
    """
    try:
        data = json.loads(read_text(path, what="importance file"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(
            f"importance file {path}: not complete JSON ({str(error)[:80]}); expected "
            '{"layer": number or [one per channel], …}'
        ) from error
    return from_numbers(data, graph, source=f"the user's own numbers ({path.name})")


def from_numbers(data: Any, graph: ModelGraph, *, source: str = "the user's own numbers") -> Importance:
    """Importance of layers by name: a number is each channel's, a list gives one per channel; `NAME:bias` a bias.

    A number stands where measured energy E_c (mean ||g_c||²) would: 0 or more. What is not named is worth nothing.

    Raises:
        InputError: another form, an unknown layer, a wrong count, or a negative or infinite number.
    """
    if not isinstance(data, Mapping) or not data:
        raise InputError(f'{source}: expected {{"layer": number or [one per channel], …}}, got {type(data).__name__}')
    energy = {unit.name: np.zeros(unit.channels) for unit in graph.units}
    biases: dict[str, float] = {}
    for key, value in data.items():
        name = key.removesuffix(_BIAS)
        unit = graph.layer_by_name.get(name)
        if unit is None or (key.endswith(_BIAS) and unit.bias is None):
            raise InputError(f"{source}: the model has no layer {key!r}; see `medyate report` for the names")
        if key.endswith(_BIAS):
            biases[name] = float(_numbers(value, 1, key, source)[0])
        else:
            energy[name] = _channels(value, unit, source)
    if not any(biases.values()) and not any(values.any() for values in energy.values()):
        raise InputError(f"{source}: every number is 0, so that no plan is better than another")
    return Importance(
        energy=energy,
        norms={name: np.sqrt(values) for name, values in energy.items()},
        bias_energy=biases,
        fingerprint=graph.fingerprint,
        source=source,
    )


def _channels(value: Any, unit: Layer, source: str) -> Vector:
    if isinstance(value, list):
        return _numbers(value, unit.channels, unit.name, source)
    whole: Vector = np.full(unit.channels, _numbers(value, 1, unit.name, source)[0])
    return whole


def _numbers(value: Any, count: int, name: str, source: str) -> Vector:
    given = value if isinstance(value, list) else [value]
    right = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in given)
    if not right or len(given) != count or not all(0 <= v <= _LARGEST for v in given):  # NaN fails, too
        raise InputError(
            f"{source}: {name}: expected {count} number{'s' * (count > 1)} of 0 to {_LARGEST:g}, got {str(value)[:60]}"
        )
    return np.asarray(given, dtype=np.float64)
