"""Image stems: from pixels to one vector a patch. Patches do not overlap, so each is a matrix product of its
own pixels.

Weights keep the shape of the convolution they equal, so foreign checkpoints load unchanged; the product runs
as unfold + linear, which is the faster form of a convolution whose stride is its kernel.
Axis letters: k images, c channels, n patches (row-major), p patch side, d width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo.errors import ConfigError
from mmzoo.layers.norms import DEFAULT_EPS


class PatchConv(nn.Module):
    """A convolution whose stride is its kernel, applied to blocks of pixels that were unfolded before.

    Shape: weight (d, c, p, p) as nn.Conv2d's. Initialised as nn.Conv2d, the bias zero.
    """

    def __init__(self, channels: int, dim: int, kernel: int, *, bias: bool = True) -> None:
        """Make the weights."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def pixels(self, blocks: Float[Tensor, "*blocks f"]) -> Float[Tensor, "*blocks d"]:
        """Apply to blocks flattened as (c, p, p)."""
        return F.linear(blocks, self.weight.flatten(1), self.bias)

    def cells(self, blocks: Float[Tensor, "*blocks f"]) -> Float[Tensor, "*blocks d"]:
        """Apply to blocks flattened as (p, p, c), as a merge of neighbouring cells gives them."""
        return F.linear(blocks, self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)


class ConvStem(nn.Module):
    """One convolution of kernel and stride `patch_size`.

    Shape: (k c rows*p cols*p) -> (k n d). Ref: ViT (arXiv:2010.11929); ONE-PEACE's `mlp` stem, which has no
    bias.
    """

    def __init__(self, channels: int, dim: int, patch_size: int, *, bias: bool = True) -> None:
        """Make the convolution."""
        super().__init__()
        self.patch_size = patch_size
        self.proj = PatchConv(channels, dim, patch_size, bias=bias)

    def forward(self, images: Float[Tensor, "k c height width"]) -> Float[Tensor, "k n d"]:
        """Embed the patches."""
        side = self.patch_size
        blocks = images.unflatten(3, (-1, side)).unflatten(2, (-1, side))
        return self.proj.pixels(blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))


class HmlpStem(nn.Module):
    """Hierarchical MLP stem: three convolutions of strides patch_size / 4, 2 and 2, layer norm and GELU
    between.

    Why: each patch is still embedded by itself, so masked patches cost nothing, yet better than by one
    product.
    Shape: (k c rows*p cols*p) -> (k n d), inner width d / 4. Any patch size that 4 divides: 16 has strides 4,
    2, 2 as released; 8 has 2, 2, 2; 4 has 1, 2, 2 (a pointwise first layer); 32 has 8, 2, 2.
    Ref: ONE-PEACE section 3.1; hMLP stem of arXiv:2203.09795 (there with batch norm).
    """

    def __init__(self, channels: int, dim: int, patch_size: int) -> None:
        """Make the three convolutions and the two norms."""
        super().__init__()
        if patch_size % 4 or dim % 4:
            found = f"patch_size {patch_size}, width {dim}"
            do = "Change them or choose stem: conv."
            raise ConfigError.at("hmlp stem", found, "multiples of 4", do)
        inner, self.first = dim // 4, patch_size // 4
        self.conv1 = PatchConv(channels, inner, self.first)
        self.norm1 = nn.LayerNorm(inner, eps=DEFAULT_EPS)
        self.conv2 = PatchConv(inner, inner, 2)
        self.norm2 = nn.LayerNorm(inner, eps=DEFAULT_EPS)
        self.conv3 = PatchConv(inner, dim, 2)

    def forward(self, images: Float[Tensor, "k c height width"]) -> Float[Tensor, "k n d"]:
        """Embed the patches; pixels are brought into the order of the three levels once."""
        sizes = (-1, 2, 2, self.first)
        blocks = images.unflatten(3, sizes).unflatten(2, sizes)
        # axes: 0 k, 1 c, 2 rows, 3 4 5 the levels downwards, 6 cols, 7 8 9 the levels to the right
        blocks = (
            blocks.permute(0, 2, 6, 3, 7, 4, 8, 1, 5, 9).flatten(7).flatten(5, 6).flatten(3, 4).flatten(1, 2)
        )
        cells = F.gelu(self.norm1(self.conv1.pixels(blocks)))
        cells = F.gelu(self.norm2(self.conv2.cells(cells.flatten(3))))
        return self.conv3.cells(cells.flatten(2))
