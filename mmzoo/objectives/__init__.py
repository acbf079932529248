"""Predictions and targets -> mergeable loss state."""

from mmzoo.registry import Row

TABLE = {
    "infonce": Row(
        "mmzoo.objectives.contrast:InfoNce", "symmetric cross-modal InfoNCE over pairs of passes, chunked"
    ),
    "siglip": Row(
        "mmzoo.objectives.contrast:SigLip", "pairwise sigmoid contrast over pairs of passes, chunked"
    ),
    "denoising_contrast": Row(
        "mmzoo.objectives.denoise:DenoisingContrast", "hidden tokens found among the teacher's (ONE-PEACE)"
    ),
    "feature_distillation": Row(
        "mmzoo.objectives.distill:FeatureDistillation",
        "projected vectors drawn to a teacher's (cosine or MSE)",
    ),
    "class_distillation": Row(
        "mmzoo.objectives.distill:ClassDistillation",
        "softened class probabilities of a teacher (Hinton's KD)",
    ),
    "relation_distillation": Row(
        "mmzoo.objectives.distill:RelationDistillation",
        "similarities within the batch as a teacher sees them (CLIP-KD)",
    ),
    "cross_entropy": Row(
        "mmzoo.objectives.classify:CrossEntropy", "softmax cross-entropy with label smoothing"
    ),
    "choice_hinge": Row(
        "mmzoo.objectives.choice:ChoiceHinge", "the right answer leads the others by a margin (ONE-PEACE)"
    ),
    "choice_cross_entropy": Row(
        "mmzoo.objectives.choice:ChoiceCrossEntropy", "softmax cross-entropy over the answers of a sample"
    ),
    "bce": Row("mmzoo.objectives.classify:BinaryCrossEntropy", "multi-label binary cross-entropy"),
    "l1": Row("mmzoo.objectives.numbers:AbsoluteError", "absolute difference of numbers"),
    "mse": Row("mmzoo.objectives.numbers:SquaredError", "squared difference of numbers"),
    "smooth_l1": Row("mmzoo.objectives.numbers:SmoothL1", "squared where small, absolute where large"),
    "box_l1_giou": Row(
        "mmzoo.objectives.boxes:BoxLoss", "distance of a box's corners and generalised IoU (ONE-PEACE)"
    ),
    "dense_cross_entropy": Row(
        "mmzoo.objectives.dense:DenseCrossEntropy", "softmax cross-entropy of every pixel's class"
    ),
    "balanced_saliency": Row(
        "mmzoo.objectives.dense:BalancedSaliency", "class-balanced cross-entropy of salient pixels"
    ),
    "normals_l1": Row("mmzoo.objectives.dense:NormalsL1", "absolute difference of unit surface normals"),
    "balanced_edge": Row(
        "mmzoo.objectives.dense:BalancedEdge", "binary cross-entropy of boundary pixels, weighted"
    ),
    "depth_l1": Row("mmzoo.objectives.dense:DepthL1", "absolute error of depth"),
    "m3net_boxes": Row(
        "mmzoo.models.m3net.objectives:BoxObjective", "matched boxes and the heat map of centres (M3Net)"
    ),
    "m3net_map": Row("mmzoo.models.m3net.objectives:MapObjective", "focal loss of the ground's map (M3Net)"),
    "m3net_occupancy": Row(
        "mmzoo.models.m3net.objectives:OccupancyObjective", "cross-entropy, affinities and Lovasz of voxels"
    ),
}
