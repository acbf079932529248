"""Shapes and types of the whole package are checked at run time, here and only here."""

from __future__ import annotations

import os
import pathlib

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: threads only wait for each other
os.environ["MMZOO_NO_PROGRESS"] = "1"

from jaxtyping import install_import_hook

HOOK = install_import_hook("mmzoo", "beartype.beartype")

import pytest  # noqa: E402 the hook comes first
import torch  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Return the folder of real data and golden tensors beside the project, or skip."""
    if not SHARED.is_dir():
        pytest.skip("../shared (real data, golden tensors) is absent")
    return SHARED


@pytest.fixture
def generator() -> torch.Generator:
    """Return a fresh generator with a fixed seed."""
    return torch.Generator().manual_seed(0)
