"""MLoRE (non-commercial: its files stay outside): predictions, task features, routes, first block."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmzoo.batch import Batch, ModalityInput
from mmzoo.models.mlore.interop import MODALITY, from_mlore, options_of
from mmzoo.models.multimodal import MultimodalModel
from tests.parity.golden import Golden, Row

TOLERANCE = 1e-5
ORDERS = {True: "top_k_softmax", False: "softmax_top_k"}
"""The reference's `pre_softmax`."""


def rows(golden: Golden) -> Iterator[Row]:
    """Build the model from weights and record, run it, yield every output.

    Where values exceed 1 (features reach 9), the error counts relative to the largest.
    """
    found = run(golden, "experts")
    for name in sorted(outputs(golden)):
        expected = golden.tensors[name]
        large = bool(expected.abs().max() > 1)
        yield Row(name, found[name.removeprefix("out/")], expected, TOLERANCE, relative=large)


def outputs(golden: Golden) -> set[str]:
    """Return the names of all outputs."""
    return {name for name in golden.tensors if name.startswith("out/")}


def build(golden: Golden, inference: str = "experts") -> MultimodalModel:
    """Return the model of the file's weights, in evaluation mode."""
    record, weights = golden.record, golden.under("state/")
    options = options_of(
        weights,
        image_size=tuple(record["img_size"]),
        num_heads=record["num_heads"],
        taps=list(record["select_list"]),
        top_k=record["topk"],
        gate_order=ORDERS[record["pre_softmax"]],
        inference=inference,
    )
    model = MultimodalModel(options)
    model.load_state_dict(from_mlore(weights).state)
    return model.eval()


def batch_of(image: Tensor) -> Batch:
    """Return the images as a batch."""
    sizes = torch.tensor([tuple(image.shape[1:])] * len(image))
    inputs = {MODALITY: ModalityInput(image, torch.arange(len(image)), sizes)}
    return Batch(tuple(str(i) for i in range(len(image))), inputs)


def run(golden: Golden, inference: str) -> dict[str, Tensor]:
    """Return every output under the reference's name."""
    model = build(golden, inference)
    found: dict[str, Tensor] = {}
    for task, head in model.heads.items():
        head.register_forward_pre_hook(_keep_features(found, f"taskfeat_{task}", head.config.upsample))
    assert model.decoder is not None
    for level, block in enumerate(model.decoder.get_submodule("first").children()):
        block.register_forward_hook(_keep_block(found, f"mlore1_l{level}"))
    with torch.no_grad():
        output = model(batch_of(golden.tensors["in/image"]))
    for task, prediction in output.predictions.items():
        found[f"pred_{task}"] = prediction[MODALITY].values
    for name, value in output.stats.items():
        match = re.fullmatch(rf"decoder/{MODALITY}/(route[12])\.(\d+)\.(.+)", name)
        if match:
            found[f"{match[1]}_l{match[2]}_{match[3]}"] = value
    found["load_balance_cv2"] = output.stats[f"decoder/{MODALITY}/variation"][None]
    return found


def _keep_features(found: dict[str, Tensor], name: str, upsample: int) -> Any:
    def hook(module: Any, inputs: Any) -> None:
        values = inputs[0].values
        found[name] = F.interpolate(
            values, scale_factor=float(upsample), mode="bilinear", align_corners=False
        )

    return hook


def _keep_block(found: dict[str, Tensor], name: str) -> Any:
    def hook(module: Any, inputs: Any, output: Any) -> None:
        given, (features, _) = inputs[0], output
        found[f"{name}_in"] = next(iter(given.values()))
        found.update({f"{name}_{task}": value for task, value in features.items()})

    return hook
