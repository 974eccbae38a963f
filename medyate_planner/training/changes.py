"""What a run has changed: from its folder to its weights and its delta."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from medyate_planner.errors import InputError
from medyate_planner.files import read_text
from medyate_planner.graph import Layer, ModelGraph
from medyate_planner.planning.plan import Plan
from medyate_planner.training.delta import Delta, frozen_hashes
from medyate_planner.training.parts import ROWS, Part

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, kw_only=True)
class RunWeights:
    """Weights of a run, each tensor under its first name: the final ones, or those of the last checkpoint."""

    state: Mapping[str, Tensor]
    finished: bool

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.state.values())


def read_run_weights(folder: Path) -> RunWeights:
    """Read the weights a run folder holds.

    Raises:
        InputError: it is not a run's, has no weights yet, or they are damaged.
    """
    if not (folder / "recipe.json").is_file():
        raise InputError(f"{folder}: expected a run folder of `medyate train`, or a delta file with --onto")
    final, checkpoint = folder / "model.safetensors", folder / "checkpoint.safetensors"
    found = next((path for path in (final, checkpoint) if path.is_file()), None)
    if found is None:
        raise InputError(f"run {folder}: no checkpoint was written yet; go on with `medyate train --resume`")
    try:
        with safe_open(found, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys() if not name.startswith(".")}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"run {folder}: {found.name} can not be read ({error}); train again with --force") from error
    return RunWeights(state=state, finished=found == final)


def read_selections(folder: Path) -> dict[str, set[int]]:
    """All channels that a run has drawn in any interval, by layer; a line that a kill cut off is left out.

    Raises:
        InputError: a line before the last is not what a run writes.
    """
    channels: dict[str, set[int]] = {}
    file = folder / "selections.jsonl"
    lines = read_text(file, what="selections").splitlines() if file.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            for name, drawn in json.loads(line)["layers"].items():
                channels.setdefault(name, set()).update(int(channel) for channel in drawn)
        except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            if number < len(lines):
                raise InputError(f"{file}: line {number} is not what a run writes ({error})") from error
    return channels


def delta_of(
    model: nn.Module,
    graph: ModelGraph,
    plan: Plan,
    weights: RunWeights,
    channels: Mapping[str, Iterable[int]],
    *,
    plan_sha256: str,
    warmed: Sequence[str] | None = None,
) -> Delta:
    """The delta of a run.

    Args:
        model: The model, for the names of its tensors; its values are not read, it may be on the meta device.
        graph: Its graph, that the plan suits.
        plan: What was trained.
        weights: The run's, of which the delta is a part.
        channels: All that were drawn, by layer.
        plan_sha256: Hash of the plan file.
        warmed: Parameters that were loaded with the importance before training; None: perhaps those of the head.

    Raises:
        InputError: the weights are not this model's, or the channels not its layers'.
    """
    names = _first_names(model)
    own = sorted(set(names.values()))
    if sorted(weights.state) != own:
        odd = sorted(set(own) ^ set(weights.state))[0]
        raise InputError(f"the run's weights are not those of the model that its plan names: {odd} is in one of them")
    whole = {names[name] for name in _in_full(graph, plan, warmed)}
    if plan.norm == "train":
        whole |= {first for name, first in names.items() if name.rpartition(".")[2] in _STATISTICS}
    parts = {}
    for layer in plan.layers:
        unit, drawn = graph.layer_by_name[layer.name], sorted(channels.get(layer.name, ()))
        if drawn and not 0 <= drawn[0] <= drawn[-1] < unit.channels:
            raise InputError(f"selections: {layer.name}: expected channels of 0 to {unit.channels - 1}, got {drawn}")
        if len(drawn) == unit.channels:
            whole.add(names[unit.weight])
        elif drawn:
            parts[names[unit.weight]] = Part.of(weights.state[names[unit.weight]], drawn, _groups(unit))
    parts = {name: part for name, part in parts.items() if name not in whole}
    return Delta(
        fingerprint=graph.fingerprint,
        plan_sha256=plan_sha256,
        whole={name: weights.state[name] for name in sorted(whole)},
        parts=parts,
        frozen=frozen_hashes(weights.state, whole, parts),
        aliases={name: first for name, first in names.items() if name != first},
        facts={"finished": weights.finished, "model": plan.model.spec},
    )


def _in_full(graph: ModelGraph, plan: Plan, warmed: Sequence[str] | None) -> set[str]:
    """Parameters of which every element may have changed."""
    heads = [layer.name for layer in plan.layers if layer.head]
    if warmed is None or heads:  # without an importance file, `train` warms the head that the plan trains in full
        heads += graph.head
    units = [graph.layer_by_name[name] for name in heads]
    biased = [graph.layer_by_name[name] for name in plan.biases]
    return {
        *(warmed or ()),
        *(unit.weight for unit in units),
        *(unit.bias for unit in (*units, *biased) if unit.bias is not None),
    }


def _groups(unit: Layer) -> int:
    return ROWS if unit.kind in ("transposed", "norm") else unit.groups


def _first_names(model: nn.Module) -> dict[str, str]:
    """The name that a tensor is stored under, by each of its names (tied weights have several)."""
    first: dict[int, str] = {}
    tensors = {name: t for name, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}
