"""What training does to views and labels of a scene together: mirrors and quarter turns, which are exact.

Why: a view is a grid, so these need no interpolation, whether it was made of points here or by a network
elsewhere; boxes, map and occupancy follow exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Shaped

from mmzoo import schema
from mmzoo.datamodules.scene import Scene
from mmzoo.errors import ConfigError

Array = np.ndarray


@dataclass(kw_only=True)
class SceneAugment(schema.Config):
    """Random changes in training. Evaluation does none of them."""

    flip_x_prob: float = 0.5
    """Probability that x changes its sign."""
    flip_y_prob: float = 0.5
    """Probability that y changes its sign."""
    turn_prob: float = 0.0
    """Probability of a turn by 90, 180 or 270 degrees, each as likely."""

    def __post_init__(self) -> None:
        """Check the probabilities."""
        for name in ("flip_x_prob", "flip_y_prob", "turn_prob"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError.at(name, f"{value:g}", "0 … 1", "Give a share.")


@dataclass(frozen=True)
class Motion:
    """Mirrors first, then quarter turns from x to y."""

    flip_x: bool = False
    flip_y: bool = False
    quarters: int = 0

    @staticmethod
    def draw(options: SceneAugment, generator: torch.Generator) -> Motion:
        """Draw one."""
        chance = torch.rand(3, generator=generator).tolist()
        quarters = int(torch.randint(1, 4, (), generator=generator))
        flips = chance[0] < options.flip_x_prob, chance[1] < options.flip_y_prob
        return Motion(*flips, quarters if chance[2] < options.turn_prob else 0)

    def matrix(self) -> Float[Array, "2 2"]:
        """Return what it does to x and y."""
        signs = np.diag([-1.0 if self.flip_x else 1.0, -1.0 if self.flip_y else 1.0])
        quarter = np.array([[0.0, -1.0], [1.0, 0.0]])
        return np.linalg.matrix_power(quarter, self.quarters % 4) @ signs

    def grid(self, values: Shaped[Array, "*c h w"]) -> Shaped[Array, "*c h w"]:
        """Move the cells of a square grid [y, x] around its middle."""
        if self.flip_x:
            values = np.flip(values, axis=-1)
        if self.flip_y:
            values = np.flip(values, axis=-2)
        return np.ascontiguousarray(np.rot90(values, self.quarters, axes=(-1, -2)))

    def boxes(self, values: Float[Array, "n 10"]) -> Float[Array, "n 10"]:
        """Move boxes: place, heading and velocity; sizes and class stay."""
        matrix, out = self.matrix().astype(values.dtype), values.copy()
        out[:, :2], out[:, 7:9] = values[:, :2] @ matrix.T, values[:, 7:9] @ matrix.T
        heading = np.stack([np.cos(values[:, 6]), np.sin(values[:, 6])], axis=-1) @ matrix.T
        out[:, 6] = np.arctan2(heading[:, 1], heading[:, 0])
        return out


def move(scene: Scene, motion: Motion) -> Scene:
    """Move a scene; no channel of its views may hold a direction."""
    grids = {name: getattr(scene, name) for name in ("map", "occupancy")}
    return replace(
        scene,
        inputs={name: motion.grid(view) for name, view in scene.inputs.items()},
        boxes=None if scene.boxes is None else motion.boxes(scene.boxes),
        **{name: None if grid is None else motion.grid(grid) for name, grid in grids.items()},
    )
