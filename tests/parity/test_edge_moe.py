"""Edge-MoE's folder of raw files, made in its exact layout: converted, run and compared with a slow M3ViT."""

from __future__ import annotations

import logging
import pathlib

import pytest
import torch
from torch import Tensor

import mmzoo
from mmzoo import zoo
from mmzoo.batch import Batch, ModalityInput
from mmzoo.checkpoints.loading import LoadReport
from mmzoo.cli.main import main
from mmzoo.errors import CheckpointError
from mmzoo.models.multimodal import MultimodalModel
from tests.parity import slow_m3vit

DIM, EXPERTS, HIDDEN, LAYERS = 192, 16, 384, 12
SIZES = slow_m3vit.Sizes(num_heads=3, top_k=2)


def layout() -> dict[str, tuple[int, ...]]:
    """Return every file of the layout and the shape of what it holds, from the specification."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed_weight": (DIM, 3, 16, 16),
        "patch_embed_bias": (DIM,),
        "pos_embed": (129, DIM),
    }
    for i in range(LAYERS):
        linears = {"qkv": (3 * DIM, DIM), "attn_proj": (DIM, DIM)}
        if i % 2 == 0:
            linears |= {"fc1": (768, DIM), "fc2": (DIM, 768)}
        else:
            shapes |= {f"l{i}_htoh4_weight": (EXPERTS, HIDDEN, DIM), f"l{i}_htoh4_bias": (EXPERTS, HIDDEN)}
            shapes |= {f"l{i}_h4toh_weight": (EXPERTS, DIM, HIDDEN), f"l{i}_h4toh_bias": (EXPERTS, DIM)}
            shapes |= {f"l{i}_w_gate_T_task{t}": (EXPERTS, DIM) for t in range(2)}
        shapes |= {f"l{i}_{name}_weight": shape for name, shape in linears.items()}
        shapes |= {f"l{i}_{name}_bias": shape[:1] for name, shape in linears.items()}
        shapes |= {f"l{i}_norm{n}_{p}": (DIM,) for n in (1, 2) for p in ("weight", "bias")}
    return shapes


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {
        name: torch.randn(shape, generator=generator) * (0.3 if len(shape) == 1 else shape[-1] ** -0.5)
        for name, shape in layout().items()
    }
    return {name: value + 1 if "norm" in name and "weight" in name else value for name, value in made.items()}


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    return MultimodalModel(zoo.preset("edge_moe_tiny"))


def write(folder: pathlib.Path, tensors: dict[str, Tensor]) -> pathlib.Path:
    folder.mkdir()
    for name, value in tensors.items():
        (folder / f"{name}.float32.bin").write_bytes(value.numpy().astype("<f4").tobytes())
    (folder / "image.float32.bin").write_bytes(bytes(8))  # of the test bench: nothing reads it
    return folder


def reference(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under M3ViT's names; CLS is in the positions."""
    state = {
        "backbone.cls_token": torch.zeros(1, 1, DIM),
        "backbone.pos_embed": tensors["pos_embed"][None],
        "backbone.patch_embed.proj.weight": tensors["patch_embed_weight"],
        "backbone.patch_embed.proj.bias": tensors["patch_embed_bias"],
    }
    parts = {"qkv": "attn.qkv", "attn_proj": "attn.proj", "norm1": "norm1", "norm2": "norm2"}
    parts |= {"fc1": "mlp.fc1", "fc2": "mlp.fc2", "htoh4": "mlp.experts.htoh4", "h4toh": "mlp.experts.h4toh"}
    for name, value in tensors.items():
        if not name.startswith("l"):
            continue
        layer, rest = name[1:].split("_", 1)
        block = f"backbone.blocks.{layer}."
        if rest.startswith("w_gate_T_task"):
            state[f"{block}mlp.gate.{rest[-1]}.w_gate"] = value.T
        else:
            part, kind = rest.rsplit("_", 1)
            state[f"{block}{parts[part]}.{kind}"] = value
    return state


def streams(model: MultimodalModel, image: Tensor) -> dict[str, Tensor]:
    """Return the stream after the last block, by task."""
    part = ModalityInput(image[None], torch.arange(1), torch.tensor([tuple(image.shape)]))
    batch = Batch(("0",), {"image": part})
    with torch.no_grad():
        tokens = model.adapters["image"](batch.inputs["image"])
        found = model.trunk([[tokens]], taps=[LAYERS], tasks={task: [0] for task in model.heads}).tasks
    return {task: out.taps[LAYERS][0][0].tokens[0] for task, out in found.items()}


def test_a_whole_folder_is_converted_and_agrees(tensors: dict[str, Tensor], tmp_path: pathlib.Path):
    folder, target = write(tmp_path / "weights", tensors), tmp_path / "edge"
    assert main(["convert", str(folder), str(target)]) == 0
    model = mmzoo.load(target)
    image = torch.randn(3, 128, 256, generator=torch.Generator().manual_seed(1))
    found = streams(model, image)
    state = reference(tensors)
    with torch.no_grad():
        tokens = slow_m3vit.tokens(state, image)
        for place, task in enumerate(("semseg", "depth")):
            wanted = slow_m3vit.backbone(state, tokens, place, SIZES)[f"block{LAYERS - 1}"]
            scale = wanted.abs().max().item()
            torch.testing.assert_close(found[task], wanted, atol=2e-6 * scale, rtol=0)
    assert not torch.allclose(found["semseg"], found["depth"])


def test_missing_experts_are_told_or_start_anew(
    tensors: dict[str, Tensor],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    """The published copy: no expert matrices."""
    kept = {n: v for n, v in tensors.items() if not n.endswith(("htoh4_weight", "h4toh_weight"))}
    folder, target = write(tmp_path / "weights", kept), tmp_path / "edge"
    assert main(["convert", str(folder), str(target)]) == 2
    line = capsys.readouterr().err.strip()
    assert line.count("\n") == 0
    assert "no l1_htoh4_weight.float32.bin" in line
    assert "and 9 more; expected all files of Edge-MoE" in line
    assert "--allow-partial" in line
    with caplog.at_level(logging.INFO, logger="mmzoo"):
        assert main(["convert", str(folder), str(target), "--allow-partial"]) == 0
    assert "no file for (12)" in caplog.text
    state = mmzoo.load(target).state_dict()
    assert torch.equal(state["trunk.blocks.1.ffn.router.gates.depth.weight"], tensors["l1_w_gate_T_task1"])
    assert state["trunk.blocks.1.ffn.experts.w_in"].abs().max() > 0


def test_training_starts_from_the_folder(
    model: MultimodalModel, tensors: dict[str, Tensor], tmp_path: pathlib.Path
):
    """What `init_from=DIR` does: everything but decoder and heads is taken, from a part only if allowed."""
    kept = {n: v for n, v in tensors.items() if n != "l3_htoh4_weight"}
    folder = write(tmp_path / "weights", kept)
    zoo.check_source(folder)
    with pytest.raises(CheckpointError, match=r"no l3_htoh4_weight.float32.bin; expected all"):
        zoo.start_from(model, folder)
    report: LoadReport = zoo.start_from(model, folder, allow_partial=True)
    assert [name for name in report.missing if not name.startswith(("heads.", "decoder."))] == [
        "trunk.blocks.3.ffn.experts.w_in"
    ]
    assert torch.equal(model.state_dict()["adapters.image.positions.table"], tensors["pos_embed"])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("l0_fc1_bias", bytes(12), r"l0_fc1_bias.float32.bin: 12 bytes; expected 3072 \(768 float32\)"),
        ("l12_fc1_bias", bytes(3072), r"l12_fc1_bias.float32.bin; expected only files of Edge-MoE"),
    ],
)
def test_a_file_that_does_not_belong_is_told(
    name: str, content: bytes, said: str, model: MultimodalModel, tmp_path: pathlib.Path
):
    folder = write(tmp_path / "weights", {})
    (folder / f"{name}.float32.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        zoo.start_from(model, folder, allow_partial=True)
