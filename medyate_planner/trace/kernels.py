"""Where a real kernel makes something that its fake one does not (torch 2.13, CPU): whoever looks at fake steps is told
here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_CONV_BACKWARD = _aten.convolution_backward.default
_NOT_ONEDNN = ("Slow", "Empty", "Overrideable")
_NORMS = {  # places of parameters and stored statistics
    _aten.native_batch_norm.default: slice(1, 5),
    _aten.native_layer_norm.default: slice(2, 4),
    _aten.native_group_norm.default: slice(1, 3),
}
_GROUP_NORM_BACKWARD = _aten.native_group_norm_backward.default


def as_real(func: Any, args: tuple[Any, ...], result: Any) -> Any:
    """The result of an operator on fake tensors with what the real kernel adds; any other result as it is."""
    if func is _CONV_BACKWARD:
        return _with_weight_gradient(args, result)
    if func in _NORMS:
        return _with_wide_statistics(args, args[_NORMS[func]], result)
    if func is _GROUP_NORM_BACKWARD and isinstance(result[0], FakeTensor):
        return result[0].to(args[1].dtype), *result[1:]
    return result


def _with_weight_gradient(args: tuple[Any, ...], result: Any) -> Any:
    """oneDNN's convolution makes the weight's gradient along with the bias's, wanted or not."""
    gradient, x, weight = args[:3]
    wants_weight, wants_bias = args[-1][1:3]
    if wants_weight or not wants_bias or not isinstance(gradient, FakeTensor) or gradient.device.type != "cpu":
        return result
    sizes, stride, padding, dilation, transposed, output_padding, groups = args[3:10]
    backend = torch._C._select_conv_backend(
        x, weight, None, stride, padding, dilation, transposed, output_padding, groups, sizes
    )
    if str(backend).rpartition(".")[2].startswith(_NOT_ONEDNN):
        return result
    return result[0], torch.empty_like(weight), result[2]


def _with_wide_statistics(args: tuple[Any, ...], own: tuple[Any, ...], result: Any) -> Any:
    """Fed with half precision, a norm of float32 keeps its statistics in float32."""
    output, *statistics = result
    parameters = [t for t in own if isinstance(t, Tensor)]
    if not isinstance(output, FakeTensor) or not parameters or parameters[0].dtype == args[0].dtype:
        return result
    return (output, *(torch.empty_like(t, dtype=parameters[0].dtype) for t in statistics))


class RealKernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operators on fake tensors give what real ones give."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return as_real(func, args, func(*args, **(kwargs or {})))
