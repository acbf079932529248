"""The picture of dense tasks: colours stand for values, grey for none, truth stands beside the prediction."""

from __future__ import annotations

import numpy as np
import torch

from mmzoo.batch import IGNORE, DenseKind
from mmzoo.cli.dense_panels import (
    GAP,
    HEAD,
    NONE,
    Panel,
    colour_label,
    colour_prediction,
    image_pixels,
    palette,
    side_by_side,
)


def test_classes_have_colours_of_their_own_and_the_prediction_the_truths():
    assert len({tuple(c) for c in palette().tolist()}) == 256
    assert palette()[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    true = torch.tensor([[0, 1, 2], [3, IGNORE, 1]])
    found = torch.nn.functional.one_hot(true.clamp(max=3), 4).permute(2, 0, 1).float()
    label, prediction = colour_label(DenseKind.CLASSES, true), colour_prediction(DenseKind.CLASSES, found)
    assert label[1, 1].tolist() == list(NONE)
    real = (true != IGNORE).numpy()
    np.testing.assert_array_equal(label[real], prediction[real])


def test_normals_depth_and_edges_are_coloured_by_value():
    up = torch.tensor([0.0, 1.0, 0.0])[:, None, None].expand(3, 2, 2).clone()
    assert colour_label(DenseKind.NORMALS, up)[0, 0].tolist() == [128, 255, 128]
    assert colour_prediction(DenseKind.NORMALS, 7 * up)[0, 0].tolist() == [128, 255, 128]
    depth = torch.tensor([[[1.0, 5.0], [0.0, 3.0]]])
    label = colour_label(DenseKind.DEPTH, depth, 1.0, 5.0)
    assert label[1, 0].tolist() == list(NONE)
    np.testing.assert_array_equal(label[0], colour_prediction(DenseKind.DEPTH, depth, 1.0, 5.0)[0])
    assert label[0, 0].tolist() != label[0, 1].tolist() != label[1, 1].tolist()
    edge = colour_label(DenseKind.EDGE, torch.tensor([[[0.0, 1.0, IGNORE]]]))
    sure = colour_prediction(DenseKind.EDGE, torch.tensor([[[-99.0, 99.0, 0.0]]]))
    np.testing.assert_array_equal(edge[0, :2], sure[0, :2])
    assert edge[0, 2].tolist() == list(NONE)
    salient = colour_prediction(DenseKind.SALIENCY, torch.tensor([[[0.0]], [[99.0]]]))
    np.testing.assert_array_equal(salient, colour_label(DenseKind.SALIENCY, torch.tensor([[1]])))


def test_truth_and_prediction_stand_side_by_side():
    image = np.full((100, 50, 3), 7, np.uint8)
    edge = torch.zeros(1, 100, 50)
    rows = [
        {"edge": Panel(DenseKind.EDGE, edge + 99, edge), "d": Panel(DenseKind.DEPTH, edge + 2, None)},
        {"edge": Panel(DenseKind.EDGE, edge - 99, None)},
    ]
    found = side_by_side([image, image], rows)
    assert found.shape == (HEAD + GAP + 2 * (100 + GAP), GAP + 5 * (50 + GAP), 3)

    def cell(row: int, column: int) -> list[int]:
        return found[HEAD + GAP + row * (100 + GAP) + 50, GAP + column * (50 + GAP) + 25].tolist()

    low, high = colour_label(DenseKind.EDGE, torch.tensor([[[0.0, 1.0]]]))[0].tolist()
    assert [cell(0, c) for c in range(4)] == [[7, 7, 7], low, high, list(NONE)]
    assert [cell(1, c) for c in range(5)] == [[7, 7, 7], list(NONE), low, list(NONE), list(NONE)]


def test_the_image_comes_back_from_its_normalised_form():
    pixels = torch.randint(256, (3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scale, shift = (
        torch.tensor([0.02, 0.03, 0.01])[:, None, None],
        torch.tensor([1.0, -2.0, 0.5])[:, None, None],
    )
    found = image_pixels(pixels * scale + shift, scale, shift)
    np.testing.assert_array_equal(found, pixels.permute(1, 2, 0).numpy())
