"""LightningModules."""

from mmzoo.registry import Row

TABLE = {
    "multitask": Row(
        "mmzoo.learners.multitask:MultitaskLearner", "weighted sum of task losses, AdamW, cosine"
    ),
}
