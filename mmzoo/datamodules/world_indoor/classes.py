"""What the indoor world consists of: class names, parts of people, and what colours things come in."""

from __future__ import annotations

CLASSES = (
    "wall",
    "floor",
    "ceiling",
    "door",
    "window",
    "picture",
    "rug",
    "table",
    "chair",
    "cabinet",
    "bed",
    "lamp",
    "ball",
    "person",
)
"""Semantic classes in index order."""
CLASS = {name: number for number, name in enumerate(CLASSES)}
PARTS = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")
"""Human parts in the order of PASCAL-Context's six-part map."""
PART = {name: number for number, name in enumerate(PARTS)}
FURNITURE = ("table", "chair", "cabinet", "bed", "lamp", "ball", "person", "rug", "picture", "window", "door")
"""What a room may have or lack; which of them it has is its plan."""
MOVABLE = tuple(CLASS[name] for name in ("table", "chair", "cabinet", "bed", "lamp", "ball", "person"))
"""Classes of which the salient object is one."""

HUES: dict[str, tuple[float, float]] = {
    "wall": (0.05, 0.65),
    "floor": (0.04, 0.12),
    "ceiling": (0.08, 0.18),
    "door": (0.03, 0.12),
    "window": (0.5, 0.62),
    "picture": (0.0, 1.0),
    "rug": (0.0, 1.0),
    "table": (0.03, 0.13),
    "chair": (0.0, 1.0),
    "cabinet": (0.03, 0.65),
    "bed": (0.0, 1.0),
    "lamp": (0.08, 0.17),
    "ball": (0.0, 1.0),
    "person": (0.0, 1.0),
}
"""Range of hues; they overlap, so that colour alone does not tell the class."""
TONES: dict[str, tuple[float, float, float, float]] = {
    "wall": (0.05, 0.3, 0.6, 0.9),
    "floor": (0.2, 0.6, 0.3, 0.7),
    "ceiling": (0.0, 0.1, 0.8, 0.95),
    "window": (0.1, 0.4, 0.8, 1.0),
}
"""Least and most saturation, least and most value; others have `ANY_TONE`."""
ANY_TONE = (0.25, 0.9, 0.3, 0.9)
