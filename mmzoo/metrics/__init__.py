"""The same State idea as the objectives, not optimised."""

from mmzoo.registry import Row

TABLE = {
    "accuracy": Row("mmzoo.metrics.classify:Accuracy", "top-k and mean-class accuracy, confusion matrix"),
    "choice_accuracy": Row(
        "mmzoo.metrics.choice:ChoiceAccuracy", "share of samples whose right answer scores highest"
    ),
    "map": Row(
        "mmzoo.metrics.classify:MeanAveragePrecision", "macro mean average precision of multi-label scores"
    ),
    "soft_accuracy": Row(
        "mmzoo.metrics.soft_accuracy:SoftAccuracy", "score of the label with the highest logit (VQA)"
    ),
    "regression_error": Row("mmzoo.metrics.numbers:RegressionError", "MAE, RMSE and R2 of numbers"),
    "box_iou": Row("mmzoo.metrics.numbers:BoxIou", "share of boxes with IoU of 0.5 or more, and mean IoU"),
    "retrieval": Row(
        "mmzoo.metrics.retrieval:Retrieval", "recall@k and median rank of every ordered pair of passes"
    ),
    "knn": Row("mmzoo.metrics.probe:Knn", "weighted k-nearest-neighbour accuracy on frozen embeddings"),
    "linear_probe": Row(
        "mmzoo.metrics.probe:LinearProbe", "ridge-regression probe accuracy on frozen embeddings"
    ),
    "zero_shot": Row("mmzoo.metrics.zero_shot:ZeroShot", "accuracy against embeddings of class-name prompts"),
    "miou": Row("mmzoo.metrics.dense:MeanIou", "mean intersection over union of every pixel's class"),
    "depth_error": Row(
        "mmzoo.metrics.dense:DepthError", "RMSE, log RMSE, absolute and squared relative error"
    ),
    "normals_error": Row("mmzoo.metrics.dense:NormalsError", "mean angle of surface normals"),
    "saliency": Row("mmzoo.metrics.dense:Saliency", "saliency by the three protocols in print, each named"),
    "nuscenes_boxes": Row(
        "mmzoo.metrics.boxes_3d:NuScenesBoxes", "AP by distance and NDS without attributes (nuScenes)"
    ),
    "map_iou": Row("mmzoo.metrics.scene:MapIou", "IoU of the ground's classes, best over thresholds"),
    "occupancy_iou": Row("mmzoo.metrics.scene:OccupancyIou", "IoU of voxels' classes, and of occupied"),
    "boundary": Row("mmzoo.metrics.boundary:Boundary", "odsF and oisF of boundaries, thinned and matched"),
}
