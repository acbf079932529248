"""What fine-tuning does to a model: choose parts, freeze them, add low-rank factors, graft modalities,
start the trunk from other weights."""
