"""Leaf mathematics: norms, positions, attention kernels and masks, drop path, initialisation."""
