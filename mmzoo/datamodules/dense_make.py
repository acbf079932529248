"""Writes the indoor world in the folder layouts of NYUD-v2 and PASCAL-Context, to try and test readers on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmzoo.datamodules.dense_layouts import NYUD_CLASSES, PASCAL_MAPS, VOC_CLASSES
from mmzoo.datamodules.new_folder import into_new_folder
from mmzoo.datamodules.pascal_parts import GROUPS, HUMAN
from mmzoo.datamodules.world_indoor.classes import CLASS, CLASSES
from mmzoo.datamodules.world_indoor.rooms import IndoorWorldConfig, make_view, view_name
from mmzoo.datamodules.world_indoor.view import Labelled, see
from mmzoo.errors import ConfigError

MIN_IMAGES = 4
SIZE = (96, 128)
LABEL_CLASSES = 459
"""Classes of PASCAL-Context's full maps."""
TO_NYUD = {
    "rug": "floor mat",
    "ball": "other prop",
    **{name: name for name in CLASSES if name not in ("rug", "ball")},
}
"""The world's classes as NYUD's."""
TO_VOC = {"chair": "chair", "table": "diningtable", "person": "person", "bed": "sofa"}
"""The world's classes as VOC's; the others are background."""


@into_new_folder
def write_nyud(folder: Path, images: int, *, seed: int = 0, size: tuple[int, int] = SIZE) -> str:
    """Write so many images in NYUD's layout, a quarter of them in val.txt; say what was written."""
    number = np.array([1 + NYUD_CLASSES.index(TO_NYUD[name]) for name in CLASSES], dtype=np.uint8)
    kinds = ("images", "segmentation", "normals", "edge", "depth", "gt_sets")
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for name, part, made in _scenes(folder, kinds, (images, seed, size)):
        _png(folder / "images" / f"{name}.png", made["image"])
        _png(folder / "segmentation" / f"{name}.png", number[made["semseg"]])
        _png(folder / "normals" / f"{name}.png", encode_normals(made["normals"]))
        _png(folder / "edge" / f"{name}.png", 255 * made["edge"])
        np.save(folder / "depth" / f"{name}.npy", made["depth"])
        lists[part].append(name)
    return _write_lists(folder / "gt_sets", lists)


@into_new_folder
def write_pascal_context(folder: Path, images: int, *, seed: int = 0, size: tuple[int, int] = SIZE) -> str:
    """Write so many images in PASCAL-Context's layout, with lists of class names in `names/`."""
    from scipy.io import savemat

    voc = np.array([VOC_CLASSES.index(TO_VOC.get(name, "background")) for name in CLASSES], np.uint8)
    kinds = ("JPEGImages", "semseg/VOC12", "sal_distill", "normals_distill", PASCAL_MAPS)
    every = (*kinds, "human_parts", "ImageSets/Context", "names")
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for name, part, made in _scenes(folder, every, (images, seed, size)):
        _png(folder / "JPEGImages" / f"{name}.jpg", made["image"])
        _png(folder / "semseg/VOC12" / f"{name}.png", voc[made["semseg"]])
        _png(folder / "sal_distill" / f"{name}.png", 255 * made["sal"])
        _png(folder / "normals_distill" / f"{name}.png", encode_normals(made["normals"]))
        numbers = made["semseg"].astype(np.uint16) + 1
        savemat(folder / PASCAL_MAPS / f"{name}.mat", {"LabelMap": numbers}, do_compression=True)
        savemat(folder / "human_parts" / f"{name}.mat", {"anno": annotation(made)}, do_compression=True)
        lists[part].append(name)
    filler = [f"class {n}" for n in range(len(CLASSES) + 1, LABEL_CLASSES + 1)]
    filler[427 - len(CLASSES) - 1] = "tvmonitor"
    lines = [f"{n}: {name}" for n, name in enumerate([*CLASSES, *filler], start=1)]
    (folder / "names/context.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "names/nyu.txt").write_text("\n".join(set(CLASSES) - {"ball"}) + "\n", encoding="utf-8")
    return _write_lists(folder / "ImageSets/Context", lists)


def encode_normals(normals: np.ndarray) -> np.ndarray:
    """Return normals as 8-bit RGB, 255 (n + 1) / 2."""
    return np.round(255 * (normals + 1) / 2).clip(0, 255).astype(np.uint8)


def annotation(made: Labelled) -> dict[str, Any]:
    """Return the parts of people as PASCAL-Part nests them: all people as one object, and a chair."""
    person = made["semseg"] == CLASS["person"]
    parts = [
        (names[0], made["human_parts"] == number)
        for number, names in GROUPS.items()
        if (made["human_parts"] == number).any()
    ]
    fields = [("class", object), ("class_ind", object), ("mask", object), ("parts", object)]
    kinds = [("part_name", object), ("mask", object)]
    inner = np.array([[(name, mask.astype(np.uint8)) for name, mask in parts]], dtype=kinds)
    nothing = np.zeros((0, 0))
    objects = [("person", HUMAN, person.astype(np.uint8), inner)] if person.any() else []
    objects.append(("chair", 9, (made["semseg"] == CLASS["chair"]).astype(np.uint8), nothing))
    return {"imname": "made", "objects": np.array([objects], dtype=fields)}


def _scenes(
    folder: Path, kinds: tuple[str, ...], what: tuple[int, int, tuple[int, int]]
) -> Iterator[tuple[str, str, Labelled]]:
    """Make the folders, then yield id, list and content of each image."""
    images, seed, size = what
    if images < MIN_IMAGES:
        raise ConfigError.at("data make", f"{images} samples", f"at least {MIN_IMAGES}", "Ask for 16.")
    for kind in kinds:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    held = images // 4
    config = IndoorWorldConfig(world_seed=seed, size=size, views_per_room=1)
    for split, part, count in (("train", "train", images - held), ("test", "val", held)):
        for number in range(count):
            made = see(make_view(config, split, number), np.random.default_rng([seed, number]))
            yield view_name(split, number, config), part, made


def _png(path: Path, values: np.ndarray) -> None:
    from PIL import Image

    picture = Image.fromarray(values.astype(np.uint8))
    picture.save(path, quality=95) if path.suffix == ".jpg" else picture.save(path)


def _write_lists(folder: Path, lists: dict[str, list[str]]) -> str:
    for part, names in lists.items():
        (folder / f"{part}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return ", ".join(f"{len(names)} images in {part}.txt" for part, names in lists.items())
