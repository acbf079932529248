"""The shared trunk: token mixers, feed-forwards, block, packed execution."""

from mmzoo.registry import Row

MIXERS = {
    "attention": Row(
        "mmzoo.trunk.attention:MultiHeadAttention", "multi-head softmax attention, Sub-LN optional"
    ),
    "moa": Row(
        "mmzoo.trunk.moa:MixtureOfAttention", "each token chooses the experts that ask (MoA, Mod-Squad)"
    ),
    "moh": Row("mmzoo.trunk.moh:MixtureOfHeads", "attention; each token chooses and weights its heads (MoH)"),
}

FEED_FORWARDS = {
    "modality": Row("mmzoo.trunk.feed_forward:ModalityFeedForward", "one FFN a modality (ONE-PEACE)"),
    "shared": Row("mmzoo.trunk.feed_forward:SharedFeedForward", "one FFN for all tokens"),
    "moe": Row("mmzoo.trunk.moe:MoeFeedForward", "experts chosen by a router, shared experts optional"),
    "soft_moe": Row(
        "mmzoo.trunk.soft_moe:SoftMoeFeedForward", "experts read slots, means of a sample's tokens"
    ),
}

ROUTERS = {
    "topk": Row("mmzoo.trunk.routers:TopKRouter", "top-k of softmax by the token, noise optional"),
    "task_topk": Row("mmzoo.trunk.routers:TaskTopKRouter", "one gate a task (M3ViT multi-gate)"),
    "task_embedding": Row("mmzoo.trunk.routers:TaskEmbeddingRouter", "one gate that reads a task's vector"),
    "modality": Row("mmzoo.trunk.routers:ModalityRouter", "top-k among the experts of the token's modality"),
    "soft": Row("mmzoo.trunk.routers:SoftRouter", "all experts, weighted by softmax"),
}
