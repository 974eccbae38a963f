"""Models by name: the small zoo, torchvision, timm, transformers, and any factory function.

spec -> sources (zoo, hubs, factory) -> weights -> head -> LoadedModel
"""

from __future__ import annotations

from medyate_planner.models.factory import import_factory
from medyate_planner.models.head import example_input, find_head
from medyate_planner.models.load import LoadedModel, load_model, parse_shape
from medyate_planner.models.preprocessing import Preprocessing
from medyate_planner.models.weights import assets_dir
from medyate_planner.models.zoo import ZOO, build_zoo_model

__all__ = [
    "ZOO",
    "LoadedModel",
    "Preprocessing",
    "assets_dir",
    "build_zoo_model",
    "example_input",
    "find_head",
    "import_factory",
    "load_model",
    "parse_shape",
]
