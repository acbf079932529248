"""The split files of Karpathy & Fei-Fei (2015) for COCO and Flickr, read as the rows of a manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmzoo.errors import DataError

Row = Mapping[str, Any]
TRAIN = ("train", "restval")
"""COCO's `restval`, pictures of the validation part that are neither val nor test, is trained on, as is
usual."""


def read_karpathy(text: str, path: Path) -> list[Row]:
    """Return a row a picture: id, image (relative to the file), caption (a list), split.

    Shape: {"images": [{"filename", "filepath" (COCO), "split", "sentences": [{"raw"}, …]}, …]}
    """
    expected = 'an object with "images", each with filename, split and sentences'
    try:
        images = json.loads(text)["images"]
        return [_row(image) for image in images]
    except (ValueError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {error}"
        do = "Write one JSON object a line into a .jsonl file instead."
        raise DataError.at(str(path), found, expected, do) from error


def _row(image: Mapping[str, Any]) -> Row:
    name = "/".join(part for part in (image.get("filepath", ""), image["filename"]) if part)
    split = image["split"]
    captions = [sentence["raw"] for sentence in image["sentences"]]
    return {"id": name, "image": name, "caption": captions, "split": "train" if split in TRAIN else split}
