"""Training's changes of an image and its labels: a plane stays the plane that the changed camera sees."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmzoo.batch import IGNORE, DenseKind
from mmzoo.datamodules.dense_augment import (
    DenseAugment,
    Labelled,
    augment,
    crop,
    distort,
    flip,
    margins,
    pad_labels,
    rescale,
)
from mmzoo.errors import ConfigError

KINDS = {"depth": DenseKind.DEPTH, "normals": DenseKind.NORMALS, "semseg": DenseKind.CLASSES}
NORMAL = torch.tensor([0.3, 0.4, math.sqrt(0.75)])
DISTANCE, FOCAL, SIZE = -2.0, 40.0, (40, 60)
"""The plane n · x = DISTANCE in the camera's axes: x right, y up, z towards the viewer."""


def rays(size: tuple[int, int], focal: float, middle: tuple[float, float]) -> Tensor:
    """Return the direction of each pixel's middle; `middle` is the optical axis in (row, column)."""
    y = (middle[0] - 0.5 - torch.arange(size[0])) / focal
    x = (torch.arange(size[1]) + 0.5 - middle[1]) / focal
    return torch.stack([x.expand(size), y[:, None].expand(size), -torch.ones(size)])


def plane() -> Labelled:
    """Look at a plane; the image holds the position, so that image and labels can be told to agree."""
    seen = rays(SIZE, FOCAL, (SIZE[0] / 2, SIZE[1] / 2))
    depth = DISTANCE / (NORMAL[:, None, None] * seen).sum(0, keepdim=True)
    image = torch.stack(
        [
            4 * torch.arange(SIZE[1]).expand(SIZE),
            6 * torch.arange(SIZE[0])[:, None].expand(SIZE),
            torch.zeros(SIZE),
        ]
    ).byte()
    classes = torch.arange(SIZE[1]).expand(SIZE) // 10
    return Labelled(
        image,
        {
            "depth": depth,
            "normals": NORMAL[:, None, None].expand(3, *SIZE).clone(),
            "semseg": classes.clone(),
        },
        KINDS,
    )


def off_plane(labels: Labelled, focal: float, middle: tuple[float, float], distance: float) -> float:
    """Return how far points fall from the plane of their normals, the farthest (metres)."""
    points = rays(labels.size, focal, middle) * labels.labels["depth"]
    return float(((points * labels.labels["normals"]).sum(0) - distance).abs().max())


def test_the_plane_is_one():
    assert off_plane(plane(), FOCAL, (20.0, 30.0), DISTANCE) < 1e-5


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.4, 2.0])
def test_scaled_it_is_a_plane_of_the_same_slant_at_a_scaled_distance(scale):
    """The camera's focal length times s, the world divided by s; labels are off by half a pixel at most."""
    found = rescale(plane(), scale)
    size = tuple(int(n * scale) for n in SIZE)
    assert found.size == size
    slack = 0.5 * DISTANCE * -1 / FOCAL / NORMAL[2] ** 2 / scale
    assert off_plane(found, FOCAL * scale, (size[0] / 2, size[1] / 2), DISTANCE / scale) < slack
    assert off_plane(found, FOCAL * scale, (size[0] / 2, size[1] / 2), DISTANCE) > 0.3


def test_cropped_the_axis_moves_and_nothing_else():
    found = crop(plane(), 7, 11, (20, 24))
    assert found.size == (20, 24)
    assert off_plane(found, FOCAL, (20.0 - 7, 30.0 - 11), DISTANCE) < 1e-5
    assert found.image[0, 0, 0] == 4 * 11
    assert found.image[1, 0, 0] == 6 * 7


def test_flipped_normals_point_the_other_way_along_x():
    whole = plane()
    whole.labels["normals"][:, 3] = IGNORE
    found = flip(whole)
    assert (found.labels["normals"][:, 3] == IGNORE).all()
    found.labels["normals"][:, 3] = NORMAL[:, None] * torch.tensor([[-1.0], [1.0], [1.0]])
    assert off_plane(found, FOCAL, (20.0, 30.0), DISTANCE) < 1e-5
    assert torch.equal(found.labels["normals"][:, 0, 0], NORMAL * torch.tensor([-1.0, 1.0, 1.0]))
    assert torch.equal(found.image, whole.image.flip(-1))


def test_all_changes_together_keep_image_and_labels_aligned(generator):
    options = DenseAugment(photometric_prob=0.0)
    for _ in range(20):
        found = augment(plane(), (24, 32), options, generator)
        assert found.size[0] <= 24
        assert found.size[1] <= 32
        column = found.image[0].float() / 4  # of the original image, from the interpolated colours
        assert ((column - 4.5) / 10 - found.labels["semseg"]).abs().max() < 0.65
        inner = found.image[1].float() / 6
        seen = rays(SIZE, FOCAL, (SIZE[0] / 2, SIZE[1] / 2))
        true = DISTANCE / (NORMAL[:, None, None] * seen).sum(0)
        at = true[inner.round().long().clamp(0, 39), column.round().long().clamp(0, 59)]
        ratio = (at / found.labels["depth"][0]).flatten()
        assert 0.45 < float(ratio.median()) < 2.05
        assert float((ratio / ratio.median() - 1).abs().max()) < 0.12


def test_labels_keep_their_values(generator):
    whole = plane()
    holes = whole.labels["depth"].clone()
    holes[:, ::3] = 0
    found = rescale(replace(whole, labels={**whole.labels, "depth": holes}), 1.37)
    assert set(found.labels["semseg"].unique().tolist()) == set(range(6))
    depth = found.labels["depth"][found.labels["depth"] > 0] * 1.37
    assert depth.min() >= holes[holes > 0].min() - 1e-5


def test_a_crop_of_one_class_is_drawn_again():
    size, classes = (40, 60), torch.zeros(40, 60, dtype=torch.int64)
    classes[:, 50:] = 1
    whole = Labelled(
        torch.zeros(3, *size, dtype=torch.uint8), {"semseg": classes}, {"semseg": DenseKind.CLASSES}
    )

    def share(most: float) -> float:
        options = DenseAugment(scale=(1.0, 1.0), cat_max_ratio=most, flip_prob=0.0, photometric_prob=0.0)
        made = [augment(whole, (20, 20), options, torch.Generator().manual_seed(n)) for n in range(60)]
        return sum(bool((m.labels["semseg"] == 1).any()) for m in made) / len(made)

    assert share(0.75) > share(1.0) + 0.2


def test_pads_are_ignored_and_the_image_is_in_the_middle():
    labels = pad_labels(plane(), (50, 71))
    assert margins(SIZE, (50, 71)) == [5, 6, 5, 5]
    assert (labels["semseg"][:5] == IGNORE).all()
    assert (labels["normals"][:, :, :5] == IGNORE).all()
    assert (labels["depth"][0, :, -6:] == 0).all()
    assert torch.equal(labels["semseg"][5:45, 5:65], plane().labels["semseg"])


def test_colours_change_within_their_ranges(generator):
    grey = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    seen = torch.stack([distort(grey, 1.0, generator) for _ in range(200)]).float()
    assert 0.5 * 68 - 1 <= seen.min() < 45
    assert 170 < seen.max() <= 1.5 * 132 + 1
    assert torch.equal(distort(grey, 0.0, generator), grey)
    assert (seen == seen[:, :1]).all()  # grey has no hue to turn
    red = torch.zeros(3, 4, 4, dtype=torch.uint8)
    red[0] = 200
    hues = torch.stack([distort(red, 1.0, generator) for _ in range(100)])
    assert (hues[:, 1] > 20).any()
    assert (hues[:, 2] > 20).any()


def test_hue_and_saturation_are_those_of_the_standard_library():
    import colorsys

    from mmzoo.datamodules.dense_augment import _recolour

    pixels = (255 * torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(1))).round()
    found = _recolour(pixels, 0.7, 25.0)
    for y in range(5):
        for x in range(6):
            h, s, v = colorsys.rgb_to_hsv(*(pixels[:, y, x] / 255).tolist())
            expected = colorsys.hsv_to_rgb((h + 25 / 360) % 1, 0.7 * s, v)
            assert (found[:, y, x] / 255).tolist() == pytest.approx(expected, abs=1e-5)


def test_ranges_are_checked():
    with pytest.raises(ConfigError, match="scale"):
        DenseAugment(scale=(2.0, 1.0))
    with pytest.raises(ConfigError, match="flip_prob"):
        DenseAugment(flip_prob=1.5)
