"""What autograd keeps: saved-tensor hooks that count distinct storages from forward to backward."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from medyate_planner.memory.moments import Category
from medyate_planner.trace import storage_key
from medyate_planner.training.ledger import Ledger

_KEPT_IN = {True: Category.KEPT_SELECTED, False: Category.KEPT_PASSTHROUGH}


class _Packed:
    """What autograd holds instead of a saved tensor; tells its keeper when it is let go."""

    __slots__ = ("keeper", "key", "tensor")

    def __init__(self, tensor: Tensor, key: int, keeper: KeptTracker) -> None:
        self.tensor, self.key, self.keeper = tensor, key, keeper

    def __del__(self) -> None:
        if hasattr(self, "keeper"):  # torch.compile makes some that are never filled in
            self.keeper.released(self.key)


class KeptTracker:
    """Saved-tensor hooks that count distinct storages held for backward, and the weight gradients beside them.

    Args:
        resident: Tensors that are there anyway: what lives in their storages is not counted.
        fixed_bytes: What is kept for training all the time: indices of selections, optimizer state.
        ledger: Told what is kept and what is a weight gradient.
        lean: Whether a kept storage is either a selection or pass-through; PyTorch does not tell them apart.
        owner: Name of whoever keeps a storage, asked at its first packing; bytes by owner are in `saved_by_owner`.
    """

    def __init__(
        self,
        resident: Iterable[Tensor],
        *,
        fixed_bytes: int = 0,
        ledger: Ledger | None = None,
        lean: bool = True,
        owner: Callable[[], str] | None = None,
    ) -> None:
        self._resident = {storage_key(tensor) for tensor in resident}
        self._holders: dict[int, int] = {}
        self._bytes: dict[int, int] = {}
        self._selected: set[int] = set()
        self._saved: dict[int, tuple[bool, str]] = {}  # kept by the forward that runs: is it a selection, whose is it
        self._gradients: dict[int, Any] = {}
        self._gradients_now = 0
        self._kept_now = 0
        self._ledger, self._lean, self._owner = ledger, lean, owner
        self.fixed_bytes = fixed_bytes
        self.phase = "forward"
        self.saved_bytes = self.selected_bytes = self.loss_bytes = self.gradients_bytes = 0
        self.all_gradients_bytes = 0
        self.saved_by_owner: dict[str, int] = {}
        self.training_bytes = fixed_bytes
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda packed: packed.tensor)

    def __enter__(self) -> KeptTracker:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def begin_forward(self) -> None:
        """Count what one more forward of the same step saves from zero (gradient accumulation)."""
        self.phase = "forward"
        self.saved_bytes = self.selected_bytes = self.loss_bytes = self.all_gradients_bytes = 0
        self._saved, self.saved_by_owner = {}, {}

    def held(self) -> dict[int, int]:
        """Bytes of the storages kept now, by key."""
        return dict(self._bytes)

    def _pack(self, tensor: Tensor) -> _Packed:
        key = storage_key(tensor)
        if key not in self._resident:
            self._holders[key] = self._holders.get(key, 0) + 1
            if self._holders[key] == 1:
                self._hold(key, int(tensor.untyped_storage().nbytes()))
        return _Packed(tensor, key, self)

    def _hold(self, key: int, nbytes: int) -> None:
        self._bytes[key] = nbytes
        self._kept_now += nbytes
        is_selected = key in self._selected
        self._selected.discard(key)
        if self.phase == "loss":
            self.loss_bytes += nbytes
        else:
            self._saved[key] = is_selected, "" if self._owner is None else self._owner()
            self._count_saved(key, nbytes)
        if self._ledger is not None:
            category = _KEPT_IN[is_selected] if self._lean else Category.KEPT
            self._ledger.keep(key, Category.KEPT_LOSS if self.phase == "loss" else category)
        self._note_peak()

    def _count_saved(self, key: int, nbytes: int) -> None:
        is_selected, owner = self._saved[key]
        self.saved_bytes += nbytes
        self.selected_bytes += nbytes if is_selected else 0
        self.saved_by_owner[owner] = self.saved_by_owner.get(owner, 0) + nbytes

    def released(self, key: int) -> None:
        """A packed object was let go: its storage is no longer kept once all its holders are."""
        if key in self._holders:
            self._holders[key] -= 1
            if not self._holders[key]:
                del self._holders[key]
                nbytes = self._bytes.pop(key)
                self._kept_now -= nbytes
                if self.phase == "forward" and key in self._saved:  # what led nowhere is not saved for backward
                    self._count_saved(key, -nbytes)
                    del self._saved[key]
                if self._ledger is not None:
                    self._ledger.release(key)

    def selected(self, tensor: Tensor) -> None:
        """A compact copy of selected channels is about to be saved."""
        self._selected.add(storage_key(tensor))

    def gradient(self, tensor: Tensor, first: bool) -> None:
        """A weight gradient came into being; it counts until its storage is freed.

        `first`: it is not one more part of a gradient that a reused layer sums.
        """
        storage = tensor.untyped_storage()
        key = int(storage._cdata)
        if key in self._gradients:  # one more pass has been added to it, or two parameters share it
            return
        nbytes = int(storage.nbytes())
        self._gradients_now += nbytes
        self.all_gradients_bytes += nbytes if first else 0
        self.gradients_bytes = max(self.gradients_bytes, self._gradients_now)

        def freed(_reference: Any, key: int = key, nbytes: int = nbytes) -> None:
            self._gradients.pop(key, None)
            self._gradients_now -= nbytes

        self._gradients[key] = weakref.ref(storage, freed)
        if self._ledger is not None:
            self._ledger.recategorise(key, Category.WEIGHT_GRADIENTS)
        self._note_peak()

    def _note_peak(self) -> None:
        now = self._kept_now + self._gradients_now + self.fixed_bytes
        if now > self.training_bytes:
            self.training_bytes = now
