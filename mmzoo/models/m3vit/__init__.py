"""M3ViT and Edge-MoE: a ViT whose odd blocks route by task, one upsampling decoder a task."""
