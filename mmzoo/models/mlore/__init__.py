"""MLoRE: dense multi-task prediction by mixtures of low-rank experts (Yang et al. 2024)."""
