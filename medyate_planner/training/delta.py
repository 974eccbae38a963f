"""A delta: what training changed and nothing else. Applied to the original it gives the final weights, bit for bit.

A safetensors file; the channels of a weight are those of `Layer`, the elements a channel owns one row:

    NAME            a tensor in full: the head, a bias, a weight of which every channel was trained
    NAME#channels   int32 (n,), ascending: the channels that were trained
    NAME#values     (n, elements per channel): what they own

Its metadata holds a hash of everything else, so that a delta refuses any weights but those it was made for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from medyate_planner.errors import InputError
from medyate_planner.files import write_atomic
from medyate_planner.training.parts import Part, read_part, tensor_hash

SCHEMA_VERSION = 1
_COUNTER = "num_batches_tracked"  # older files lack it, and no result depends on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """Changed tensors by parameter name.

    `frozen` holds the hash of every tensor that is not in `whole`; of a weight in `parts`, that of its other channels.
    `aliases` are further names of a tensor (tied weights). `facts`: anything else, for people.
    """

    fingerprint: str
    plan_sha256: str
    whole: Mapping[str, Tensor]
    parts: Mapping[str, Part]
    frozen: Mapping[str, str]
    aliases: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def values_bytes(self) -> int:
        """Bytes of the changed values, without indices."""
        return sum(t.nbytes for t in self.whole.values()) + sum(part.values.nbytes for part in self.parts.values())

    def onto(self, weights: Mapping[str, Tensor], *, where: str, from_file: bool = False) -> dict[str, Tensor]:
        """The final weights, from the original's by name; nothing is changed in place.

        Args:
            weights: A state dict: on the host, every name of a tied tensor or one of them.
            where: What they are, for error messages.
            from_file: As a loader does, floating tensors are cast to the model's type, and what the delta holds in
                full (a new head) may have another shape there, or be lacking.

        Raises:
            InputError: they are not what the delta was made for; names the first tensor that differs.
        """
        known = {*self.whole, *self.frozen}
        given: dict[str, Tensor] = {}
        for alias, tensor in weights.items():
            name = self.aliases.get(alias, alias)
            if name not in known and not name.endswith(_COUNTER):
                raise InputError(f"{where}: {alias} is not in the model that the delta was made for")
            given[name] = self._cast(name, tensor) if from_file else tensor
        if not from_file:
            for name, tensor in self.whole.items():
                _check_like(given.get(name), tensor.shape, tensor.dtype, f"{where}: {name}")
        for name, expected in self.frozen.items():
            self._check_frozen(name, given.get(name), expected, where)
        changed = {**self.whole, **{name: part.onto(given[name]) for name, part in self.parts.items()}}
        made = {alias: self.aliases.get(alias, alias) for alias in weights} | {name: name for name in self.whole}
        return {alias: changed.get(name, given.get(name)) for alias, name in made.items()}  # type: ignore[misc]

    def _cast(self, name: str, tensor: Tensor) -> Tensor:
        dtype = getattr(torch, self.frozen[name].partition(":")[0]) if name in self.frozen else tensor.dtype
        return tensor.to(dtype) if tensor.is_floating_point() and dtype.is_floating_point else tensor

    def _check_frozen(self, name: str, tensor: Tensor | None, expected: str, where: str) -> None:
        part = self.parts.get(name)
        if part is not None:
            _check_like(tensor, part.shape, part.values.dtype, f"{where}: {name}")
        if tensor is None:
            raise InputError(f"{where}: lacks {name}, which the delta does not hold in full; pass the original")
        if (tensor_hash if part is None else part.others_hash)(tensor) != expected:
            raise InputError(
                f"{where}: {name} {list(tensor.shape)} is not the one that training started from; pass the weights "
                "that it started from"
            )

    def save(self, path: Path, *, force: bool = True) -> Path:
        """Write the file, whole or not at all."""
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.whole.items()}
        for name, part in self.parts.items():
            tensors |= {f"{name}#channels": part.channels, f"{name}#values": part.values.contiguous()}
        facts = {
            "schema_version": SCHEMA_VERSION,
            "kind": "delta",
            "fingerprint": self.fingerprint,
            "plan_sha256": self.plan_sha256,
            "parts": {name: {"shape": list(part.shape), "groups": part.groups} for name, part in self.parts.items()},
            "frozen": dict(self.frozen),
            "aliases": dict(self.aliases),
            "facts": dict(self.facts),
        }
        metadata = {"medyate": json.dumps(facts, sort_keys=True)}
        return write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata=metadata), force=force)

    @classmethod
    def load(cls, path: Path) -> Delta:
        """Read a file written by `save`.

        Raises:
            InputError: missing, damaged, not a delta, or of another schema version.
        """
        if not path.is_file():
            raise InputError(f"delta {path}: no such file; make one with `medyate export RUN --delta`")
        try:
            with safe_open(path, framework="pt") as file:
                facts = _facts_of(file)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            raise InputError(f"delta {path}: can not be read ({error}); export it again") from error
        if facts.get("kind") != "delta" or facts.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"delta {path}: expected schema version {SCHEMA_VERSION} of kind delta, got "
                f"{facts.get('schema_version')} of {facts.get('kind')}; make one with `medyate export RUN --delta`"
            )
        try:
            parts = {name: read_part(tensors, name, layout) for name, layout in facts["parts"].items()}
            return cls(
                fingerprint=facts["fingerprint"],
                plan_sha256=facts["plan_sha256"],
                whole=tensors,
                parts=parts,
                frozen=dict(facts["frozen"]),
                aliases=dict(facts["aliases"]),
                facts=dict(facts["facts"]),
            )
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InputError(f"delta {path}: its parts do not fit together ({error}); export it again") from error


def is_delta(path: Path) -> bool:
    """Whether a safetensors file says that it is a delta."""
    try:
        with safe_open(path, framework="pt") as file:
            return bool(_facts_of(file).get("kind") == "delta")
    except (SafetensorError, OSError, json.JSONDecodeError):
        return False


def _facts_of(file: Any) -> dict[str, Any]:
    facts = json.loads((file.metadata() or {}).get("medyate", "{}"))
    return facts if isinstance(facts, dict) else {}


@torch.no_grad()
def apply_delta(model: nn.Module, path: Path | str, *, fingerprint: str | None = None) -> None:
    """Turn the original into the trained model, in place, whole or not at all.

    Args:
        model: The model as it was when training began; on any device.
        path: A file from `medyate export RUN --delta`.
        fingerprint: That of the model's graph (`ModelGraph.fingerprint`), where it is at hand: checked as well. Names,
            shapes, types and the bits of all that the delta does not hold always are.

    Raises:
        InputError: the delta was made for other weights; the model is as before.
    """
    delta = Delta.load(Path(path))
    if fingerprint is not None and fingerprint != delta.fingerprint:
        raise InputError(
            f"delta {path} was made for another model (fingerprint {delta.fingerprint[:12]}, this one has "
            f"{fingerprint[:12]})"
        )
    own = {name: t for name, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    made = delta.onto({name: tensor.detach().cpu() for name, tensor in own.items()}, where=f"delta {path} on the model")
    for name, tensor in made.items():
        own[name].copy_(tensor)


def frozen_hashes(weights: Mapping[str, Tensor], whole: Container[str], parts: Mapping[str, Part]) -> dict[str, str]:
    """What `Delta.frozen` holds, from the original's or the final weights alike."""
    hashes: dict[str, Callable[[Tensor], str]] = {name: part.others_hash for name, part in parts.items()}
    return {
        name: hashes.get(name, tensor_hash)(tensor)
        for name, tensor in weights.items()
        if name not in whole and not name.endswith(_COUNTER)
    }


def _check_like(tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, where: str) -> None:
    if tensor is None or tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype:
        found = "none" if tensor is None else f"{list(tensor.shape)} of {tensor.dtype}"
        raise InputError(f"{where}: expected {list(shape)} of {dtype}, got {found}; pass the original")
