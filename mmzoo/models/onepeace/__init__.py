"""ONE-PEACE: one trunk over text, image and audio with modality feed-forwards (Wang et al. 2023)."""
