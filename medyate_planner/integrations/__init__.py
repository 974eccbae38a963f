"""Planned training in the loops of frameworks: `lightning` and `transformers`, each an extra of its own."""

from medyate_planner.training.facade import FusedSGD

__all__ = ["FusedSGD"]
