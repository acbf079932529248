"""ImagePreprocess whose open options are read from the record that a library keeps of its weights."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmzoo.batch import Item
from mmzoo.modalities.base import Preprocess
from mmzoo.modalities.image_preprocess import ImagePreprocess


class RecordPreprocess(Preprocess):
    """Does what an ImagePreprocess with all options filled in does; subclasses nest a Config with `filled`,
    which gives those."""

    def __init__(self, config: Any) -> None:
        """Read the record."""
        self.config, self.filled = config, ImagePreprocess(config.filled())

    def decode(self, data: bytes, name: str) -> Any:
        """Read an image file."""
        return self.filled.decode(data, name)

    def __call__(self, raw: Any, *, generator: torch.Generator | None = None) -> Item:
        """Turn a picture into an Item (3 h w)."""
        return self.filled(raw, generator=generator)

    def check_boxes(self) -> None:
        """Raise ConfigError where a part of the picture may be cut off, or its content moved."""
        self.filled.check_boxes()

    def place_boxes(self, boxes: Float[Tensor, "k 4"], size: tuple[int, int]) -> Float[Tensor, "k 4"]:
        """Return where boxes lie in the picture that the model is given."""
        return self.filled.place_boxes(boxes, size)
