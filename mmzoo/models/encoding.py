"""One pass after the trunk, as heads want it: a joined sequence, or feature maps of several depths.

Axis letters: k rows, n tokens, d width, c channels, h w grid.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from mmzoo.batch import TokenSequence
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.models.entries import owned
from mmzoo.trunk.packing import join


@dataclass(frozen=True)
class Encoding:
    """The sequences of a pass, the same after each tapped number of blocks, ascending, and the feature maps
    (k c h w) that the adapter's own backbone gave along. `owners`: where samples have several entries, the
    sample of each row number of the sequences.

    Why: tasks that see the same share this object, so that joining and laying on a grid is done once.
    """

    name: str
    sequences: Sequence[TokenSequence]
    taps: Sequence[Sequence[TokenSequence]] = ()
    backbone: Sequence[Tensor] = ()
    owners: Int[Tensor, " e"] | None = None

    @functools.cached_property
    def joined(self) -> TokenSequence:
        """The sequences of each sample, one behind the other."""
        found = self.sequences[0] if len(self.sequences) == 1 else join(self.sequences)
        return owned(found, self.owners)

    @functools.cached_property
    def picture(self) -> int:
        """Which of the sequences lies on a grid of rows and columns, the same for all its rows."""
        grids = [set(s.grids or ()) for s in self.sequences]
        found = [i for i, own in enumerate(grids) if own and all(len(grid) == 2 for grid in own)]
        if not found:
            do = "Give the dense tasks a pass with image tokens."
            raise ShapeError.at("decoder", f"pass {self.name} without a grid", "rows and columns", do)
        if len(grids[found[0]]) > 1:
            found_grids = ", ".join(f"{rows} x {cols}" for rows, cols in sorted(grids[found[0]]))
            do = "Set preprocess.resize=squash, or batches of one."
            raise ShapeError.at("decoder", f"images of several sizes ({found_grids})", "one size a batch", do)
        return found[0]

    @functools.cached_property
    def levels(self) -> list[Float[Tensor, "k d h w"]]:
        """The tapped tokens, and the final ones last, laid on the grid."""
        return [_on_grid(group[self.picture]) for group in (*self.taps, self.sequences)]

    @property
    def backbone_levels(self) -> Sequence[Tensor]:
        """The backbone's feature maps; raises where there are none."""
        if not self.backbone:
            do = "Use modalities.NAME.type=timm with levels, and images of one size a batch."
            where = "decoder.source=backbone"
            raise ConfigError.at(where, f"no feature maps of {self.name}", "an adapter that gives some", do)
        return self.backbone


def _on_grid(s: TokenSequence) -> Float[Tensor, "k d h w"]:
    rows, cols = (s.grids or ((0, 0),))[0]
    body = s.tokens[:, s.num_prefix : s.num_prefix + rows * cols]
    return body.transpose(1, 2).unflatten(2, (rows, cols))
