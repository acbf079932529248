"""The window partition against ISTA-Net's own tokens (strided, as its code cuts them)."""

from __future__ import annotations

import json
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mmzoo.modalities.windows import WindowMode, partition


def test_tokens_and_first_embedding(shared: pathlib.Path) -> None:
    golden = load_file(shared / "parity" / "ista_a.safetensors")
    config = json.loads((shared / "parity" / "ista_a.json").read_text())["constructor"]
    frames, joints, entities = config["window_size"]
    tokens = partition(golden["in.x"], (frames, joints, entities), WindowMode.STRIDED)
    assert torch.equal(tokens, golden["act.tokens"])
    neighbours = partition(golden["in.x"], (frames, joints, entities), WindowMode.CONTIGUOUS)
    assert not torch.equal(neighbours, golden["act.tokens"])

    mixed = F.conv3d(tokens, golden["sd.embed.0.weight"], golden["sd.embed.0.bias"])
    mean, var = golden["sd.embed.1.running_mean"], golden["sd.embed.1.running_var"]
    normed = F.batch_norm(mixed, mean, var, golden["sd.embed.1.weight"], golden["sd.embed.1.bias"])
    torch.testing.assert_close(F.leaky_relu(normed, 0.1), golden["act.embed"], rtol=1e-5, atol=1e-5)
