"""Import torchvision and timm also where torchvision's compiled extension is absent (test only).

Without the extension `import torchvision` fails: it registers fake kernels for operators nobody defined. The
models need none of those operators, so declaring them is enough.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
from types import ModuleType

import torch

_FORWARD = ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
_BACKWARD = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
_library: torch.library.Library | None = None


def import_torchvision() -> ModuleType:
    """Import torchvision; declare its operators first if nothing else does."""
    _declare_operators()
    return importlib.import_module("torchvision")


def import_timm() -> ModuleType:
    """Import timm, which imports torchvision."""
    import_torchvision()
    return importlib.import_module("timm")


def _declare_operators() -> None:
    global _library
    if _library is not None or _has_extension() or hasattr(torch.ops.torchvision, "nms"):
        return
    _library = torch.library.Library("torchvision", "DEF")
    for name in (*_FORWARD, *(f"_{name}_backward" for name in _BACKWARD)):
        _library.define(f"{name}(Tensor a) -> Tensor")


def _has_extension() -> bool:
    """Say whether torchvision's own `_C` library is there and loads."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return False
    finder = importlib.machinery.PathFinder.find_spec("_C", list(spec.submodule_search_locations))
    if finder is None or finder.origin is None:
        return False
    try:
        torch.ops.load_library(finder.origin)
    except OSError:
        return False
    return hasattr(torch.ops.torchvision, "nms")
