"""Predictions and targets -> mergeable loss state."""

from mmzoo.registry import Row

TABLE = {
    "infonce": Row(
        "mmzoo.objectives.contrast:InfoNce", "symmetric cross-modal InfoNCE over pairs of passes, chunked"
    ),
    "siglip": Row(
        "mmzoo.objectives.contrast:SigLip", "pairwise sigmoid contrast over pairs of passes, chunked"
    ),
    "cross_entropy": Row(
        "mmzoo.objectives.classify:CrossEntropy", "softmax cross-entropy with label smoothing"
    ),
    "bce": Row("mmzoo.objectives.classify:BinaryCrossEntropy", "multi-label binary cross-entropy"),
}
