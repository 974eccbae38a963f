"""What is live: storages seen at dispatch level, by category, after every operator of a step."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medyate_planner.errors import InputError
from medyate_planner.memory.moments import Category
from medyate_planner.trace.failure import name_operator
from medyate_planner.trace.kernels import as_real
from medyate_planner.training.ledger import Ledger
from medyate_planner.training.places import Places

_ASK_DEVICE = torch.ops.prim.device.default
_FRESH_IN = {
    "forward": Category.ACTIVATIONS,
    "loss": Category.ACTIVATIONS,
    "backward": Category.ACTIVATION_GRADIENTS,
    "optimizer": Category.WORKING_COPIES,
}


class LiveTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The live tensor storages, seen after every operator at dispatch level, in a `Ledger`.

    Args:
        already: Tensors that live before the step, by category.
        places: Finds out where an operator was called; with it every operator gets a row in the ledger.
    """

    def __init__(self, already: Mapping[Category, Iterable[Tensor]], *, places: Places | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger = Ledger(record=places is not None)
        self.phase = "forward"
        self._places = places
        self._watched: dict[int, weakref.ref[Any]] = {}
        for category, tensors in already.items():
            for tensor in tensors:
                self._note(tensor, category)
        self.ledger.write(self.phase, "start of the step")
        self._start_bytes = self.ledger.total_bytes

    @property
    def peak_bytes(self) -> int:
        """The largest sum of live storages so far."""
        return self.ledger.peak_bytes

    @property
    def growth_bytes(self) -> int:
        """How far the peak is above what lived before."""
        return self.peak_bytes - self._start_bytes

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is _ASK_DEVICE:  # a fake tensor's `.device` is dispatched like an operator
            return func(*args) if not isinstance(args[0], FakeTensor) else args[0].fake_device
        try:
            result = as_real(func, args, func(*args, **(kwargs or {})))
        except Exception as error:
            name_operator(error, func.__name__)
            raise
        fresh = _FRESH_IN[self.phase]
        if isinstance(result, Tensor):
            self._note(result, fresh)
        else:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self._note(leaf, fresh)
        if self._places is not None and self.ledger.grown:
            name = func.__name__.partition(".")[0]
            self.ledger.write(self.phase, name, self._places.find(sys._getframe(1), self.phase))
        return result

    def _note(self, tensor: Tensor, category: Category) -> None:
        if tensor.layout != torch.strided:
            raise InputError(
                f"tensors of layout {str(tensor.layout).removeprefix('torch.')} can not be accounted for; "
                "make the model without them (an embedding with sparse=False)"
            )
        storage = tensor.untyped_storage()
        key = int(storage._cdata)
        if key in self._watched:
            return
        self.ledger.add(key, int(storage.nbytes()), category)

        def freed(_reference: Any, key: int = key) -> None:
            self._watched.pop(key, None)
            self.ledger.drop(key)

        self._watched[key] = weakref.ref(storage, freed)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
