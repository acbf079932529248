"""A recipe so small that training it takes a moment."""

from __future__ import annotations

import pathlib

import pytest

SMALL = [
    "model.trunk.dim=16",
    "model.trunk.depth=2",
    "model.trunk.num_heads=2",
    "model.trunk.ffn.hidden_dim=16",
    "model.modalities.fmri.hidden_dim=8",
    "model.modalities.fmri.num_tokens=2",
    "model.modalities.image.preprocess.size=[32,32]",
    "model.modalities.text.preprocess.tokenizer=bytes",
    "data.num_events=48",
    "data.num_val=8",
    "data.num_test=8",
    "data.image_size=32",
    "data.loader.batch_size=8",
    "data.loader.eval_batch_size=8",
    "trainer.accelerator=cpu",
    "trainer.max_steps=4",
    "trainer.val_every_steps=4",
    "trainer.threads=1",
]
"""Overrides of the recipe five_senses."""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return the folder in which the small world is rendered once."""
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="session")
def small(world: pathlib.Path) -> list[str]:
    """Return overrides that make five_senses small."""
    return [*SMALL, f"data.cache_dir={world}"]
