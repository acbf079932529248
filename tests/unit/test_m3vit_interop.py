"""M3ViT's weights there and back, both router styles, experts spread over files, the Edge-MoE preset."""

from __future__ import annotations

import pathlib

import pytest
import torch
from torch import Tensor

from mmzoo import zoo
from mmzoo.batch import Batch, ModalityInput
from mmzoo.errors import CheckpointError
from mmzoo.models.m3vit.interop import config_of, from_m3vit, join_ranks, read_folder, to_m3vit
from mmzoo.models.multimodal import MultimodalModel

TASKS = ("semseg", "depth", "normals")
C, E, HIDDEN, VECTOR, CONVS = 8, 4, 6, 5, 4


def weights(*, embedded: bool, noisy: bool = False) -> dict[str, Tensor]:
    """Make M3ViT's state dict of two blocks and three tasks, from the layout in the specification."""
    shapes: dict[str, tuple[int, ...]] = {
        "backbone.cls_token": (1, 1, C),
        "backbone.pos_embed": (1, 1 + 2 * 3, C),
        "backbone.patch_embed.proj.weight": (C, 3, 16, 16),
        "backbone.patch_embed.proj.bias": (C,),
        "tam_model0.conv.weight": (2, 2),
    }
    for i in range(2):
        block = f"backbone.blocks.{i}."
        for name, rows in (("attn.qkv", 3 * C), ("attn.proj", C)):
            shapes |= {f"{block}{name}.weight": (rows, C), f"{block}{name}.bias": (rows,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"{block}{name}.weight": (C,), f"{block}{name}.bias": (C,)}
    for name, out, inner in (("fc1", 4 * C, C), ("fc2", C, 4 * C)):
        shapes |= {f"backbone.blocks.0.mlp.{name}.weight": (out, inner)}
        shapes |= {f"backbone.blocks.0.mlp.{name}.bias": (out,)}
    moe = "backbone.blocks.1.mlp."
    shapes |= {f"{moe}experts.htoh4.weight": (E, HIDDEN, C), f"{moe}experts.htoh4.bias": (E, HIDDEN)}
    shapes |= {f"{moe}experts.h4toh.weight": (E, C, HIDDEN), f"{moe}experts.h4toh.bias": (E, C)}
    gates = ["gate."] if embedded else [f"gate.{n}." for n in range(len(TASKS))]
    for gate in gates:
        shapes[f"{moe}{gate}w_gate"] = (C + VECTOR if embedded else C, E)
        if noisy:
            shapes[f"{moe}{gate}w_noise"] = (C + VECTOR if embedded else C, E)
    if embedded:
        part = "backbone.gate_task_represent."
        shapes |= {f"{part}fc1.weight": (VECTOR, len(TASKS)), f"{part}fc1.bias": (VECTOR,)}
        shapes |= {f"{part}fc2.weight": (VECTOR, VECTOR), f"{part}fc2.bias": (VECTOR,)}
        shapes |= {f"{part}norm.weight": (VECTOR,), f"{part}norm.bias": (VECTOR,)}
    shapes |= decoders()
    generator = torch.Generator().manual_seed(0)
    made = {k: torch.rand(shape, generator=generator) for k, shape in shapes.items()}
    return {k: v.long() if k.endswith("tracked") else v for k, v in made.items()}


def decoders() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for n, task in enumerate(TASKS):
        part = f"decoders.{task}."
        shapes |= {f"{part}norm.weight": (C,), f"{part}norm.bias": (C,)}
        for i in range(CONVS):
            shapes |= {f"{part}conv_{i}.weight": (7, C if i == 0 else 7, 3, 3), f"{part}conv_{i}.bias": (7,)}
            for name in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{part}syncbn_fc_{i}.{name}"] = (7,)
            shapes[f"{part}syncbn_fc_{i}.num_batches_tracked"] = ()
        shapes |= {f"{part}conv_{CONVS}.weight": (n + 1, 7, 1, 1), f"{part}conv_{CONVS}.bias": (n + 1,)}
    return shapes


@pytest.mark.parametrize(("embedded", "noisy"), [(False, False), (True, False), (False, True)])
def test_weights_go_there_and_back(embedded: bool, noisy: bool):
    state = weights(embedded=embedded, noisy=noisy)
    options = config_of(state, TASKS, num_heads=2, image_size=(32, 48), top_k=2, noisy=noisy)
    model = MultimodalModel(options)
    model.load_state_dict(from_m3vit(state, TASKS), strict=True)
    back = to_m3vit(model.state_dict(), TASKS)
    assert set(back) == {k for k in state if not k.startswith("tam_model")}
    assert all(torch.equal(back[k], state[k]) for k in back)
    image = ModalityInput(torch.rand(2, 3, 32, 48), torch.arange(2), torch.tensor([[3, 32, 48]] * 2))
    found = model.eval()(Batch(("a", "b"), {"image": image})).predictions
    assert [found[t]["image"].values.shape[1] for t in TASKS] == [1, 2, 3]


def test_experts_of_all_files_are_joined(tmp_path: pathlib.Path):
    state = weights(embedded=False)
    parts = [{k: v.chunk(2)[rank] if ".experts." in k else v for k, v in state.items()} for rank in range(2)]
    for rank, part in enumerate(parts):
        torch.save({"state_dict": {f"module.{k}": v for k, v in part.items()}}, tmp_path / f"{rank}.pth")
    for joined in (join_ranks(parts), read_folder(tmp_path)):
        assert set(joined) == set(state)
        assert all(torch.equal(joined[k], state[k]) for k in state)
    (tmp_path / "0.pth").rename(tmp_path / "2.pth")
    with pytest.raises(CheckpointError, match="without a gap"):
        read_folder(tmp_path)


def test_a_file_without_decoder_is_told():
    state = {k: v for k, v in weights(embedded=False).items() if not k.startswith("decoders.")}
    with pytest.raises(CheckpointError, match="no decoder"):
        from_m3vit(state, TASKS)


def test_edge_moe_is_what_its_paper_says():
    options = zoo.preset("edge_moe_tiny")
    model = MultimodalModel(options)
    assert model.trunk.fork_layer == 1
    assert model.adapters["image"].positions.table.shape == (129, 192)
    blocks = list(model.trunk.blocks)
    for i, block in enumerate(blocks):
        routed = hasattr(block.ffn, "experts")
        assert routed == (i % 2 == 1)
        if routed:
            assert block.ffn.experts.w_in.shape == (16, 384, 192)
            assert block.ffn.router.gates["depth"].weight.shape == (16, 192)
        else:
            assert block.ffn.network.w_in.weight.shape == (768, 192)
    assert set(to_m3vit(model.state_dict(), tuple(options.heads))) >= {"backbone.blocks.11.mlp.gate.1.w_gate"}
