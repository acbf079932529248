"""The shared trunk: token mixers, feed-forwards, block, packed execution."""

from mmzoo.registry import Row

MIXERS = {
    "attention": Row(
        "mmzoo.trunk.attention:MultiHeadAttention", "multi-head softmax attention, Sub-LN optional"
    ),
}

FEED_FORWARDS = {
    "modality": Row("mmzoo.trunk.feed_forward:ModalityFeedForward", "one FFN a modality (ONE-PEACE)"),
    "shared": Row("mmzoo.trunk.feed_forward:SharedFeedForward", "one FFN for all tokens"),
}
