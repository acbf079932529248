"""Feature maps of several depths -> one feature map a dense task."""

from mmzoo.registry import Row

TABLE = {
    "multi_head": Row(
        "mmzoo.decoders.multi_head:MultiHeadDecoder",
        "each task reads the levels by itself: the plain baseline",
    ),
    "mlore": Row(
        "mmzoo.decoders.mlore:MloreDecoder", "low-rank convolution experts chosen by a router a task (MLoRE)"
    ),
    "final": Row(
        "mmzoo.decoders.final:FinalDecoder", "each task's norm and one convolution on the final map (M3ViT)"
    ),
    "task_expert": Row(
        "mmzoo.decoders.task_expert:TaskExpertDecoder",
        "task-generic experts and a memory a task (TaskExpert)",
    ),
}
