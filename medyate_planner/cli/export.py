"""`medyate export`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from medyate_planner.cli.options import OutputOptions, check_output
from medyate_planner.cli.output import emit_json, say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from medyate_planner.training.changes import RunWeights
    from medyate_planner.training.delta import Delta

SAFETENSORS, TORCH = (".safetensors",), (".pt", ".pth")


def export(
    source: Path,
    /,
    *,
    output: Annotated[Path, Parameter(name=["-o", "--output"])],
    delta: Annotated[bool, Parameter(negative="")] = False,
    onto: Path | None = None,
    out: OutputOptions = OutputOptions(),
) -> int:
    """Write the final weights of a run under the model's own parameter names, or only what training changed.

    A delta applied to the original gives the final weights, bit for bit; any other weights are refused.

    Example: medyate export run -o delta.safetensors --delta

    Parameters
    ----------
    source
        A run folder of `medyate train`; with --onto, a delta.
    output
        .safetensors; for weights also .pt or .pth, a plain state dict.
    delta
        Only what was changed: the head, biases, and the channels that were drawn.
    onto
        The original's weights, which the delta is applied to.
    """
    from medyate_planner.errors import InputError

    if onto is not None and (delta or source.is_dir()):
        raise InputError("--onto applies a delta: pass the delta's file, not a run folder, and leave out --delta")
    if onto is None and source.is_file():
        raise InputError(f"{source} is a file: pass a run folder, or --onto WEIGHTS to apply it as a delta")
    allowed = SAFETENSORS if delta else SAFETENSORS + TORCH
    if output.suffix not in allowed:
        raise InputError(f"-o {output}: expected a name that ends in {' or '.join(allowed)}, got {output.suffix!r}")
    if source.is_dir() and output.resolve().parent == source.resolve() and (source / "recipe.json").exists():
        raise InputError(f"-o {output}: the run folder holds the run's own files; pass a place outside of it")
    check_output(output, force=out.force)
    facts = _apply(source, onto, output, out) if onto is not None else _export(source, output, delta, out)
    if out.json:
        emit_json({"schema_version": 1, "kind": "export", "file": str(output), **facts})
    return 0


def _export(folder: Path, output: Path, only_changes: bool, out: OutputOptions) -> dict[str, Any]:
    from medyate_planner.training.changes import read_run_weights

    weights = read_run_weights(folder)
    if not weights.finished:
        say(f"run {folder} is not finished: this is its last checkpoint")
    if only_changes:
        made = _delta(folder, weights)
        made.save(output, force=out.force)
    else:
        _write(weights.state, output, force=out.force)
    whole, size = weights.nbytes, output.stat().st_size
    share = f", {size / whole:.1%} of the {whole:,} B of all weights" if only_changes else ""
    say(f"wrote {output}: {size:,} B{share}")
    content = "delta" if only_changes else "weights"
    return {"content": content, "finished": weights.finished, "file_bytes": size, "weights_bytes": whole}


def _delta(folder: Path, weights: RunWeights) -> Delta:
    """Build the model that the plan names, without its weights: what a layer's tensors are called is known there."""
    from medyate_planner.cli.rebuild import model_of
    from medyate_planner.files import sha256_of
    from medyate_planner.planning.plan import Plan
    from medyate_planner.subject import traced_for
    from medyate_planner.training.changes import delta_of, read_selections
    from medyate_planner.training.run import RunFolder

    file = folder / "plan.json"
    plan = Plan.load(file)
    model = model_of(plan, allocate=False).model
    _, graph = traced_for(model, plan)
    return delta_of(
        model,
        graph,
        plan,
        weights,
        read_selections(folder),
        plan_sha256=sha256_of(file),
        warmed=RunFolder(folder).settings().get("warmed"),
    )


def _apply(file: Path, original: Path, output: Path, out: OutputOptions) -> dict[str, Any]:
    from medyate_planner.models.weights import read_weights
    from medyate_planner.training.delta import Delta

    delta = Delta.load(file)
    made = delta.onto(read_weights(original), where=f"weights {original}", from_file=True)
    finished = bool(delta.facts.get("finished", True))
    if not finished:
        say(f"delta {file} is of a run that was not finished")
    _write(made, output, force=out.force)
    size = output.stat().st_size
    say(f"wrote {output}: {size:,} B")
    whole = sum(tensor.nbytes for tensor in made.values())
    return {"content": "weights", "finished": finished, "file_bytes": size, "weights_bytes": whole}


def _write(state: Mapping[str, Tensor], output: Path, *, force: bool) -> None:
    """A safetensors file, or a plain dict of tensors that `torch.load(weights_only=True)` reads."""
    from safetensors.torch import save_file

    from medyate_planner.files import write_atomic

    if output.suffix in TORCH:
        write_atomic(output, lambda temporary: _save_torch(state, temporary), force=force)
        return
    plain = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    write_atomic(output, lambda temporary: save_file(plain, temporary, metadata={"format": "pt"}), force=force)


def _save_torch(state: Mapping[str, Tensor], file: Path) -> None:
    import torch

    try:
        torch.save(dict(state), file)
    except RuntimeError as error:  # a full disk, as torch's writer says it
        raise OSError(f"torch could not write it, is the disk full? ({str(error).strip()[:80]})") from error
