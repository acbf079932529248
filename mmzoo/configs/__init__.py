"""YAML only: model/ recipe/ data/ trainer/."""
