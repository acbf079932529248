"""Frozen models that teach: what they give for a batch is learned from by distillation objectives."""

from mmzoo.registry import Row

TABLE = {
    "open_clip": Row(
        "mmzoo.models.teachers.open_clip:OpenClipTeacher",
        "towers of any open_clip model: embeddings, or class logits from prompts",
    ),
    "timm": Row("mmzoo.models.teachers.timm_model:TimmTeacher", "pooled features of any timm model"),
    "checkpoint": Row(
        "mmzoo.models.teachers.checkpoint:CheckpointTeacher",
        "a run, an export, a model of the zoo or of the hub: vectors, or logits of the same classes",
    ),
}
