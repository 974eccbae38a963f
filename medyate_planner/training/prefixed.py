"""Training from a cached prefix: a session and its batches, such that any loop skips what was computed before.

In the first epoch the lean graph runs as ever, and what the reach reads is kept by sample. Of a batch whose samples are
all kept, the loop gets their places in place of the inputs, which are not even loaded, and the session runs the rest of
the graph on what was kept. Two things are looked at first, and if one of them does not hold the cache is not used: a
sample's values do not depend on its place in a batch (a matrix product's rounding may: many places are tried with the
first batch), and a sample is the same twice (the first batch that is all kept is computed once more).
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from medyate_planner.errors import InputError
from medyate_planner.training.batches import Batches, Pairs, invoke, tensors_of, to_model
from medyate_planner.training.parts import tensor_hash
from medyate_planner.training.prefix import PLACES, Cut, cut_prefix
from medyate_planner.training.prefix_cache import PrefixCache
from medyate_planner.training.session import Session

TARGET = "target_"
TRIED_PLACES = 16
Places = Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """A training set by the places of its samples: those of each batch of an epoch, and batches of given ones.

    A sample must be the same in every epoch (no random augmentation). `test` and `steps_per_epoch` as in `Batches`.
    """

    count: int
    order: Callable[[int], Sequence[Places]]
    load: Callable[[int, Sequence[Places]], Pairs]
    test: Callable[[], Pairs]
    steps_per_epoch: int


class PrefixedTraining:
    """Puts the cache between a session and its batches: `batches` is what the loop trains on.

    Args:
        session: Its layers must stay the same (no draws across layers), its norms be frozen.
        samples: The training set.
        folder: Where values are kept, for this run and for going on with it.
        facts: What samples depend on, such as the data's name, as JSON types.
        tell: Gets a line for a person now and then.

    Raises:
        InputError: nothing could be kept, or nowhere; see `cut_prefix`, `PrefixCache`.
    """

    def __init__(
        self,
        session: Session,
        samples: Samples,
        folder: Path,
        *,
        facts: Mapping[str, Any],
        tell: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.cut = cut_prefix(session)
        self.samples, self._session, self._tell = samples, session, tell
        self.cache = PrefixCache(
            folder,
            samples=samples.count,
            sample_bytes=self.cut.sample_bytes,
            fingerprint=_fingerprint(session, self.cut, facts),
        )
        if self.cache.was_stale:
            tell(f"{folder}: kept for other weights, data or layers; made again")
        self._graph = _Switch(session.lean, self.cut.recording(self._record), self.cut.suffix(self._read))
        session.lean = self._graph  # type: ignore[assignment]
        self._coming: deque[_Coming] = deque()
        self._target_form: TreeSpec | None = None
        self._usable, self._tried, self._compared = True, False, False

    @property
    def batches(self) -> Batches:
        """Batches for the loop."""
        return Batches(
            train=lambda epoch: self._epoch(epoch, 0),
            train_from=self._epoch,
            test=self._test,
            steps_per_epoch=self.samples.steps_per_epoch,
        )

    def describe(self) -> str:
        """What is skipped and what it takes, for a person."""
        cut, cache = self.cut, self.cache
        kept = f", {cache.count:,} samples kept before" if cache.count else ""
        return (
            f"prefix cache: {cut.skipped} operators before the reach, {cut.sample_bytes:,} B per sample x "
            f"{cache.samples:,} samples = {cache.needed_bytes:,} B in {cache.folder}{kept}"
        )

    def finish(self, *, keep: bool = False) -> None:
        """Run the lean graph as it was; remove the folder, unless it is to be kept."""
        self._session.lean = self._graph.lean
        if keep:
            self.cache.commit()
        else:
            self.cache.remove()

    def _epoch(self, epoch: int, done: int) -> Iterator[tuple[Any, Any]]:
        order = self.samples.order(epoch)[done:]
        place = 0
        while place < len(order):
            usable = self._usable
            kept = [usable and self.cache.has(chosen) for chosen in order[place:]]
            if True in kept and not self._compared:
                kept[kept.index(True)] = False
            loaded = iter(self.samples.load(epoch, [c for c, k in zip(order[place:], kept, strict=True) if not k]))
            for is_kept in kept:
                yield self._kept(order[place]) if is_kept else self._announce(order[place], next(loaded))
                place += 1
                if usable != self._usable:
                    break

    def _kept(self, chosen: Places) -> tuple[Any, Any]:
        assert self._target_form is not None
        target = [self.cache.read(name, chosen) for name in self.cache.names(TARGET)]
        return {PLACES: torch.tensor(chosen)}, tree_unflatten(target, self._target_form)

    def _read(self, name: str, places: Tensor) -> Tensor:
        """Called from the session's forward for the value of an edge; measured as an operator's result is."""
        return self.cache.read(name, places.tolist()).to(places.device)

    def _announce(self, chosen: Places, batch: tuple[Any, Any]) -> tuple[Any, Any]:
        """Note whose batch the session is about to run, and keep its target."""
        if self._usable and not self._tried:
            self._try_places(batch[0])
        if self._usable:
            compare = self.cache.has(chosen)
            coming = _Coming(chosen=chosen, compare=compare, missing=len(self.cut.edges))
            leaves, self._target_form = tree_flatten(batch[1])
            for number, leaf in enumerate(leaves):
                if not isinstance(leaf, Tensor) or not leaf.dim() or leaf.shape[0] != len(chosen):
                    self._stop("targets are not tensors with one entry for each sample")
                    return batch
                self._keep(f"{TARGET}{number}", leaf, coming)
            self._coming.append(coming)
        return batch

    @torch.no_grad()
    def _try_places(self, x: Any) -> None:
        """Compute a batch once more with its samples at other places: each at every place, of large batches at some."""
        self._tried = True
        x = to_model(self._session.model, x)
        sizes = {tensor.shape[0] for tensor in tensors_of(x)}
        expected, count = invoke(self.cut.prefix, x), sizes.pop()
        for shift in range(1, count, max(1, count // TRIED_PLACES)):
            moved = tree_map(lambda t, by=shift: _moved(t, by, 0), x)
            for edge, value, other in zip(self.cut.edges, expected, invoke(self.cut.prefix, moved), strict=True):
                if not torch.equal(_moved(value, shift, edge.batch_axis), other):
                    self._stop(f"{edge.made_by} of a sample depends on its place in the batch (a kernel's rounding)")
                    return

    def _record(self, name: str, value: Tensor) -> None:
        """Called from the session's forward with the value of an edge, before anything could change it."""
        if not self._coming or not self._usable:
            return
        coming = self._coming[0]
        self._keep(name, value, coming)
        coming.missing -= 1
        if self._usable and not coming.missing:
            self._coming.popleft()
            self._compared |= coming.compare
            self.cache.confirm(coming.chosen)

    def _keep(self, name: str, value: Tensor, coming: _Coming) -> None:
        axes = {edge.name: edge.batch_axis for edge in self.cut.edges}
        if coming.compare:
            if not self.cache.same(name, coming.chosen, value, axes.get(name, 0)):
                self._stop("a sample has not the same values twice (random augmentation, or a kernel's rounding)")
        elif not self.cache.write(name, coming.chosen, value, axes.get(name, 0)):
            self._stop("batches are not all of one form")

    def _stop(self, reason: str) -> None:
        if self._usable:
            self._tell(f"prefix cache: not used: {reason}")
        self._usable = False
        self._coming.clear()

    def _test(self) -> Iterable[tuple[Any, Any]]:
        self.cache.commit()
        return self.samples.test()


@dataclass(slots=True)
class _Coming:
    """A batch that was loaded and has yet to run: its samples, and how many edges were not told."""

    chosen: Places
    compare: bool
    missing: int


class _Switch(nn.Module):
    """In place of the lean graph: on inputs it runs that, recording edges; on places of samples the rest of it."""

    def __init__(self, lean: fx.GraphModule, recording: fx.GraphModule, suffix: fx.GraphModule) -> None:
        super().__init__()
        self.lean, self.recording, self.suffix = lean, recording, suffix
        for name, value in vars(lean).items():
            if isinstance(value, Tensor):
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.keys() == {PLACES}:
            return self.lean.graph.process_outputs(self.suffix(kwargs[PLACES]))
        return self.recording(*args, **kwargs)


def _moved(value: Any, by: int, batch_axis: int) -> Any:
    """Samples moved on by so many places, in the same order in memory."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_like(value).copy_(value.roll(by, batch_axis))


def _fingerprint(session: Session, cut: Cut, facts: Mapping[str, Any]) -> str:
    """Of all that the values at the edges depend on."""
    known = {
        "graph": session.graph.fingerprint,
        "batch_size": session.graph.batch_size,
        "edges": [edge.made_by for edge in cut.edges],
        "weights": {name: tensor_hash(weight) for name, weight in cut.weights.items()},
        "facts": dict(facts),
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def check_cacheable(*, augment: str, norm: str, pool: Sequence[str] | None) -> None:
    """Raise `InputError` for what gives a sample other values in every epoch, or trains other layers."""
    if augment != "none":
        raise InputError(f"--cache-prefix needs samples that stay the same; leave it out, or --augment {augment}")
    if norm != "frozen":
        raise InputError("--cache-prefix needs frozen norms: with --norm train values depend on the batch")
    if pool is not None:
        raise InputError("--cache-prefix needs a fixed set of layers, and this plan draws across layers; leave it out")
