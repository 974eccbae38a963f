"""Torch model + example inputs -> `Trace` (an FX graph of ATen operators) -> `ModelGraph` at any batch size.

capture (torch.export) -> reader (shapes, storages, families) -> layers (distinct weights, the head)
"""

from __future__ import annotations

from medyate_planner.trace.capture import ExampleInputs, InputSpec, Trace, as_arguments, input_specs, trace
from medyate_planner.trace.fake import fake_twin, lookup, storage_key

__all__ = [
    "ExampleInputs",
    "InputSpec",
    "Trace",
    "as_arguments",
    "fake_twin",
    "input_specs",
    "lookup",
    "storage_key",
    "trace",
]
