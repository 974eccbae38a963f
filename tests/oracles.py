"""Other people's ways, and our own few lines, to count what a step of fine-tuning holds.

Nothing here is shared with `medyate_planner`: torch's own `MemTracker` counts what is live, plain saved-tensor hooks
count what is saved, `optimizer.state` is summed after a real step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from oddities import Inputs
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._pytree import tree_map_only

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.0),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.0, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.0),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.0),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A regime in the tests' own words."""

    optimizer: str = "sgd"
    norm: str = "frozen"
    autocast: str | None = None
    accumulation: int = 1
    train: tuple[str, ...] = ("*",)


def loss_of(outputs: Any, target: Tensor) -> Tensor:
    """Cross-entropy of a tensor, or of the logits in whatever holds them; of tokens, the next token's."""
    logits = outputs if isinstance(outputs, Tensor) else outputs["logits"] if isinstance(outputs, dict) else None
    logits = outputs.logits if logits is None else logits
    if target.dim() == 2:
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), target[:, 1:].flatten())
    return nn.functional.cross_entropy(logits, target)


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of the distinct storages, by identity."""
    return {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}


class Step:
    """A model, a batch and an optimizer, ready for steps of fine-tuning; the tensors are those of the model's mode."""

    def __init__(self, model: nn.Module, inputs: Inputs, setting: Setting, *, tokens: bool = False) -> None:
        self.model, self.setting = model, setting
        self.args, self.kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
        self.args = (self.args,) if isinstance(self.args, Tensor) else self.args
        first = next(iter([*self.args, *self.kwargs.values()]))
        shape = first.shape[:2] if tokens else first.shape[:1]
        self.target = torch.zeros(shape, dtype=torch.int64)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(setting.norm == "train")
        named = list(model.named_parameters())
        for name, parameter in named:
            parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in setting.train))
        self.optimizer = OPTIMIZERS[setting.optimizer]([p for _, p in named if p.requires_grad])

    def autocast(self) -> Any:
        name = self.setting.autocast
        return torch.autocast("cpu", dtype=getattr(torch, name)) if name else nullcontext()

    def run(self) -> None:
        """As many passes as asked for, and the optimizer's step."""
        for _ in range(self.setting.accumulation):
            with self.autocast():
                loss = loss_of(self.model(*self.args, **self.kwargs), self.target)
            loss.backward()
            del loss
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def saved_bytes(self) -> int:
        """Distinct storages that hooks see saved by one forward, without parameters and buffers, without the loss."""
        held: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t), self.autocast():
            outputs = self.model(*self.args, **self.kwargs)
        resident = storages([*self.model.parameters(), *self.model.buffers()])
        found = storages(held)
        del outputs
        return sum(nbytes for key, nbytes in found.items() if key not in resident)

    def state_bytes(self) -> int:
        """All tensors of `optimizer.state`, which is there after a step."""
        tensors = [t for entry in self.optimizer.state.values() for t in entry.values() if isinstance(t, Tensor)]
        return sum(storages(tensors).values())


class _NoModules:
    """Stands in for MemTracker's module tracker, whose hooks on modules' outputs keep gradients alive for longer."""

    is_bw = False
    parents: frozenset[str] = frozenset()

    def register_user_hooks(self, *_hooks: object) -> None: ...
    def clear_user_hooks(self) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *_error: object) -> None: ...


def tracked_peak(step: Step, *, with_modules: bool = False) -> int:
    """Live peak of the second step by torch's own tracker."""
    step.run()
    tracker = MemTracker()
    if not with_modules:
        tracker._mod_tracker = _NoModules()  # type: ignore[assignment]
    attributes = [v for module in step.model.modules() for v in vars(module).values() if isinstance(v, Tensor)]
    tracker.track_external(step.model, step.optimizer, *step.args, *step.kwargs.values(), step.target, *attributes)
    with tracker:
        step.run()
    (snapshot,) = tracker.get_tracker_snapshot("peak").values()
    return int(snapshot["Total"])


@contextmanager
def fake() -> Iterator[Callable[[Any], Any]]:
    """A FakeTensorMode, and a function that makes inputs fake."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        yield lambda inputs: tree_map_only(
            Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype), inputs
        )
