"""Fixtures for all tests: one thread, third-party model libraries, the data files beside the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from third_party import import_timm, import_torchvision

os.environ.pop("COLUMNS", None)  # pytest-xdist hands the controller's width to its workers

ROOT = Path(__file__).resolve().parents[1]
ASSETS = Path(os.environ.get("MEDYATE_ASSETS", ROOT / ".." / "shared" / "assets")).resolve()
if ASSETS.is_dir():  # an installed package does not know where the project's root is
    os.environ["MEDYATE_ASSETS"] = str(ASSETS)

torch.set_num_threads(1)
import_torchvision()
import_timm()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs the data files, with the reason, where they are absent."""
    if (ASSETS / "backbones").is_dir():
        return
    reason = f"needs the data files of MEDYATE_ASSETS, and {ASSETS} is absent"
    for item in items:
        if item.get_closest_marker("assets"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of the data files."""
    return ASSETS


@pytest.fixture(scope="session")
def sign_digits(assets: Path) -> str:
    """Data spec of the hand signs."""
    return f"tar:{assets / 'datasets' / 'sign_digits.tar'}"
