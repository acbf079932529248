"""Names that the readers of published dense layouts and the writer of made ones share."""

from __future__ import annotations

NYUD_CLASSES = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf"),
    *("picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror"),
    *("floor mat", "clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel"),
    *("shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub"),
    *("bag", "other structure", "other furniture", "other prop"),
)
"""The forty classes of NYUD-v2 in index order."""

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)
"""The classes of VOC in index order."""

PASCAL_MAPS = "pascal-context/trainval"
"""Folder of the full maps of 459 classes in PASCAL-Context."""
