"""Gradient energy per channel, and the file it is kept in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from medyate_planner.errors import InputError, PlanMismatchError
from medyate_planner.files import write_atomic
from medyate_planner.graph import Layer, ModelGraph

SCHEMA_VERSION = 1
Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Importance:
    """E_c = mean over mini-batches of ||g_c||² for each channel of each layer and norm, and the warmed head.

    `norms` holds the mean of ||g_c||, which RGN uses; `bias_energy` the mean squared norm of a bias' gradient;
    `head` the head's tensors, by parameter name, as they were when the gradients were measured.
    """

    energy: Mapping[str, Vector]
    norms: Mapping[str, Vector]
    bias_energy: Mapping[str, float]
    fingerprint: str
    source: str
    head: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def check(self, graph: ModelGraph) -> None:
        """Raise `PlanMismatchError` unless this was measured on the model that `graph` describes."""
        if self.fingerprint != graph.fingerprint:
            raise PlanMismatchError(
                f"importance was measured on another model (fingerprint {self.fingerprint[:12]}, "
                f"expected {graph.fingerprint[:12]}); run `medyate rank` on this model"
            )

    def __repr__(self) -> str:
        """A few lines: the layers that matter most."""
        from medyate_planner.importance.summary import summary_of

        return summary_of(self).text()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from medyate_planner.importance.summary import summary_of

        return summary_of(self).html()

    def save(self, path: Path, *, force: bool = True) -> Path:
        """Write a safetensors file: tensors `energy/L`, `norm/L`, `head/P`, everything else as JSON metadata."""
        tensors = {f"energy/{name}": torch.from_numpy(values.copy()) for name, values in self.energy.items()}
        tensors |= {f"norm/{name}": torch.from_numpy(values.copy()) for name, values in self.norms.items()}
        tensors |= {f"head/{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in self.head.items()}
        facts = {
            "schema_version": SCHEMA_VERSION,
            "kind": "importance",
            "fingerprint": self.fingerprint,
            "source": self.source,
            "bias_energy": dict(self.bias_energy),
            "facts": dict(self.facts),
        }
        metadata = {"medyate": json.dumps(facts, sort_keys=True)}
        return write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata=metadata), force=force)

    @classmethod
    def load(cls, path: Path) -> Importance:
        """Read a file written by `save`.

        Raises:
            InputError: missing, truncated, not an importance file, or of another schema version.
        """
        if not path.is_file():
            raise InputError(f"importance file {path}: no such file; make one with `medyate rank`")
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {}).get("medyate", "{}"))
                facts = facts if isinstance(facts, dict) else {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            raise InputError(
                f"importance file {path}: can not be read ({error}); make it again with `medyate rank`"
            ) from error
        if facts.get("kind") != "importance" or facts.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"importance file {path}: expected schema version {SCHEMA_VERSION} of kind importance, "
                f"got {facts.get('schema_version')} of {facts.get('kind')}; make it again with `medyate rank`"
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        missing = {"fingerprint", "source", "bias_energy", "facts"} - facts.keys()
        if missing:
            raise InputError(
                f"importance file {path}: lacks {', '.join(sorted(missing))}; make it again with `medyate rank`"
            )
        return cls(
            energy={name: t.numpy() for name, t in part("energy/").items()},
            norms={name: t.numpy() for name, t in part("norm/").items()},
            bias_energy=facts["bias_energy"],
            fingerprint=facts["fingerprint"],
            source=facts["source"],
            head=part("head/"),
            facts=facts["facts"],
        )


def squared_norm_per_channel(layer: Layer, gradient: Tensor) -> Vector:
    """||g_c||² for every input channel c of a weight-shaped tensor, `(channels,)` in float64."""
    squares = gradient.detach().double().square()
    if layer.kind == "norm":
        elements: Vector = squares.cpu().numpy()
        return elements
    if layer.kind == "transposed":
        rows: Vector = squares.flatten(1).sum(dim=1).cpu().numpy()
        return rows
    rows_per_group = layer.out_channels // layer.groups
    # (G, C_out/G, C_in/G, k): the channel is (group, position in the group)
    grouped = squares.reshape(layer.groups, rows_per_group, layer.weight_shape[1], -1)
    result: Vector = grouped.sum(dim=(1, 3)).reshape(-1).cpu().numpy()
    return result


def from_weights(graph: ModelGraph, weights: Mapping[str, Tensor]) -> Importance:
    """A stand-in without data: mean squared weight per channel; a bias counts as one average channel of its layer.

    Says so in `source`.
    """
    energy = {}
    for layer in graph.units:
        weight = weights[layer.weight]
        if weight.is_meta:
            energy[layer.name] = np.ones(layer.channels)
        else:
            energy[layer.name] = squared_norm_per_channel(layer, weight) / layer.elements_per_channel
    return Importance(
        energy=energy,
        norms={name: np.sqrt(values) for name, values in energy.items()},
        bias_energy={unit.name: float(energy[unit.name].mean()) for unit in graph.units if unit.bias},
        fingerprint=graph.fingerprint,
        source="mean squared weight (no data seen)",
    )
