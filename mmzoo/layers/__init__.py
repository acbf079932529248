"""Leaf mathematics: norms, positions, attention kernels and masks, drop path, initialisation, token masks."""

from mmzoo.registry import Row

MASKS = {
    "words": Row("mmzoo.layers.masks:WordMask", "whole words of a text (ONE-PEACE)"),
    "random": Row("mmzoo.layers.masks:RandomMask", "tokens at random places"),
    "blocks": Row("mmzoo.layers.masks:BlockMask", "stretches of time or bands of a grid (ONE-PEACE audio)"),
}
