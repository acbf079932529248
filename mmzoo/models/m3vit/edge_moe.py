"""Edge-MoE's folder of raw weights: one file of float32 numbers, little-endian, for each tensor.

The files are called `<name>.float32.bin`; their shapes are those of the preset `edge_moe_tiny`. CLS is folded
into the first row of the positions. There are no decoders, and published copies lack files of experts: what
is not there is listed, and starts anew where that is allowed. Task 0 is `semseg`, task 1 `depth`.
Ref: Sarkar et al. 2023 (Edge-MoE), released code: its host programs and test bench.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from mmzoo import compose, configs, schema
from mmzoo.checkpoints.key_map import KeyMap, Row
from mmzoo.errors import CheckpointError
from mmzoo.models.multimodal import MultimodalModel

SUFFIX = ".float32.bin"
PRESET = "edge_moe_tiny"
CLS = "adapters.image.cls_token"
TEST_DATA = ("image", "l11_x_post_moe")
"""Input and output of the released test bench."""

ROWS: tuple[Row, ...] = (
    # Edge-MoE                 mmzoo
    ("patch_embed_{p}",        "adapters.image.stem.proj.{p}"),
    ("pos_embed",              "adapters.image.positions.table"),
    ("l{i}_norm1_{p}",         "trunk.blocks.{i}.norm1.{p}"),
    ("l{i}_qkv_{p}",           "trunk.blocks.{i}.mixer.qkv.{p}"),
    ("l{i}_attn_proj_{p}",     "trunk.blocks.{i}.mixer.out.{p}"),
    ("l{i}_norm2_{p}",         "trunk.blocks.{i}.norm2.{p}"),
    ("l{i}_fc1_{p}",           "trunk.blocks.{i}.ffn.network.w_in.{p}"),
    ("l{i}_fc2_{p}",           "trunk.blocks.{i}.ffn.network.w_out.{p}"),
    ("l{i}_htoh4_weight",      "trunk.blocks.{i}.ffn.experts.w_in"),
    ("l{i}_htoh4_bias",        "trunk.blocks.{i}.ffn.experts.b_in"),
    ("l{i}_h4toh_weight",      "trunk.blocks.{i}.ffn.experts.w_out"),
    ("l{i}_h4toh_bias",        "trunk.blocks.{i}.ffn.experts.b_out"),
    ("l{i}_w_gate_T_task0",    "trunk.blocks.{i}.ffn.router.gates.semseg.weight"),
    ("l{i}_w_gate_T_task1",    "trunk.blocks.{i}.ffn.router.gates.depth.weight"),
)  # fmt: skip

KEYS = KeyMap("Edge-MoE weights", ROWS)


@dataclass(frozen=True)
class EdgeMoeWeights:
    """`loading.Weights` of such a folder.

    files: our name -> file; shapes: our name -> shape; missing: names of files that are not there.
    """

    folder: Path
    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]
    missing: tuple[str, ...]

    def keys(self) -> list[str]:
        """Return our names."""
        return [CLS, *self.files]

    def shape(self, name: str, /) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self.shapes[name]

    def read(self, name: str, /) -> Tensor:
        """Read a tensor; CLS is zero, since the positions hold it."""
        if name == CLS:
            return torch.zeros(self.shapes[CLS])
        values = np.fromfile(self.files[name], dtype="<f4")
        return torch.from_numpy(values.astype(np.float32)).view(self.shapes[name])

    def options(self) -> MultimodalModel.Config:
        """Return the options of the model that the folder belongs to."""
        return _options()

    def for_model(self, model: MultimodalModel) -> EdgeMoeWeights:
        """Return the weights as they are: gates keep the names of the preset's tasks."""
        del model
        return self

    def lines(self) -> list[str]:
        """Return a line about the files that are missing, if any are."""
        shown = ", ".join(self.missing)
        return [f"no file for ({len(self.missing)}): {shown}"] if self.missing else []

    def require_all(self) -> None:
        """Raise where files are missing."""
        if self.missing:
            shown = ", ".join(f"{name}{SUFFIX}" for name in self.missing[:3])
            more = f" and {len(self.missing) - 3} more" if len(self.missing) > 3 else ""
            do = "Copy them, or start those parts anew: allow_partial=true (convert: --allow-partial)."
            raise CheckpointError.at(str(self.folder), f"no {shown}{more}", "all files of Edge-MoE", do)


def is_edge_moe(path: Path) -> bool:
    """Say whether this is a folder of raw weights."""
    return path.is_dir() and any(path.glob(f"*{SUFFIX}"))


def open_edge_moe(folder: Path) -> EdgeMoeWeights:
    """Look at the names and sizes of all files; one that does not belong, or is cut short, is refused."""
    shapes = _shapes()
    nothing = torch.empty(0)
    wanted = {ours: next(iter(KEYS.to_theirs({ours: nothing}))) for ours in shapes if ours != CLS}
    given = {p.name.removesuffix(SUFFIX): p for p in sorted(folder.glob(f"*{SUFFIX}"))}
    strange = [name for name in given if name not in wanted.values() and name not in TEST_DATA]
    if strange:
        do = "Move it away, or check the folder."
        raise CheckpointError.at(str(folder), f"{strange[0]}{SUFFIX}", "only files of Edge-MoE", do)
    files = {ours: given[name] for ours, name in wanted.items() if name in given}
    for ours, path in files.items():
        size, full = path.stat().st_size, 4 * int(np.prod(shapes[ours]))
        if size != full:
            expected = f"{full} ({' x '.join(map(str, shapes[ours]))} float32)"
            raise CheckpointError.at(str(path), f"{size} bytes", expected, "Copy it again.")
    missing = tuple(name for ours, name in wanted.items() if ours not in files)
    return EdgeMoeWeights(folder, files, shapes, missing)


@functools.cache
def _options() -> MultimodalModel.Config:
    tree = OmegaConf.to_container(compose.read(configs.find("model", PRESET), "model"), resolve=True)
    return schema.parse(MultimodalModel.Config, tree if isinstance(tree, dict) else {}, f"model {PRESET}")  # pyright: ignore[reportArgumentType] keys are text


@functools.cache
def _shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the preset but those of decoder and heads."""
    with torch.device("meta"):
        model = MultimodalModel(_options())
    parts = ("adapters.", "trunk.")
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if name.startswith(parts)}
