"""The reference's weights <-> ours, whole files in every released layout; `keys.py` has the two columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from mmzoo.checkpoints.key_map import KeyMap, Plan, stack
from mmzoo.errors import CheckpointError
from mmzoo.layers.positions import RelativeBias1d, RelativeBias2d
from mmzoo.models.onepeace import keys

MODALITIES = ("text", "image", "audio")
"""In the order of the reference's joint passes."""
FORMAT_VERSION = 3.0
"""What fairseq's `version` buffer holds."""
QUERY = "pool.query"
"""The end of our name for the pool's query (h d), which the reference keeps as (1 1 h d)."""
MAX_POSITIONS = 1024
"""Side of the reference's stored bucket tables of text and audio."""


class Layout(str, Enum):
    """How a file names its tensors."""

    FULL = "full"
    """the whole model, pretrained or fine-tuned: `encoder_wrapper.…`"""
    VISION = "vision"
    """the vision branch: `encoder.layers.…`, `image_adapter.…`"""


KEYS = {
    Layout.FULL: KeyMap("ONE-PEACE weights", keys.MODEL),
    Layout.VISION: KeyMap("ONE-PEACE vision weights", keys.VISION),
}


@dataclass(frozen=True)
class Reading:
    """What a file's names mean: `plan` ours -> theirs (as they stand in the file); `buffers` are no weights,
    `decoder` belongs to pretraining alone, and neither is in the plan.
    """

    layout: Layout
    plan: Plan
    buffers: tuple[str, ...]
    decoder: tuple[str, ...]


def layout_of(names: Iterable[str]) -> Layout | None:
    """Tell the layout from a file's tensor names; None where they are not ONE-PEACE's."""
    given = list(names)
    if any(name.startswith(keys.ENCODER) for name in given):
        return Layout.FULL
    image = any(name.startswith(("image_adapter.", "encoder.image_adapter.")) for name in given)
    return Layout.VISION if image and any(name.startswith("encoder.layers.") for name in given) else None


def read_names(names: Iterable[str]) -> Reading:
    """Map a file's tensor names; raise CheckpointError where one has no row."""
    given = list(names)
    layout = layout_of(given)
    if layout is None:
        found = f"{given[0]} and {len(given) - 1} more" if given else "no tensor"
        raise CheckpointError.at(
            "ONE-PEACE weights", found, "encoder_wrapper.… or encoder.layers.…", "Check the file."
        )
    buffers = tuple(name for name in given if re.fullmatch(keys.BUFFERS, name))
    decoder = tuple(name for name in given if re.match(keys.DECODER, name) and name not in buffers)
    left_out = {*buffers, *decoder}
    spelled = {canonical(name): name for name in given if name not in left_out}
    made = KEYS[layout].plan(spelled)
    plan = {ours: tuple(spelled[part] for part in parts) for ours, parts in made.items()}
    return Reading(layout, plan, buffers, decoder)


def canonical(name: str) -> str:
    """Return the spelling that the tables know."""
    for pattern, known in keys.ALIASES:
        name = re.sub(pattern, known, name)
    return name


def from_onepeace(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a MultimodalModel's weights from a reference state dict (its `model` entry), no buffers."""
    plan = read_names(state).plan
    return {ours: _to_ours(ours, stack([state[part] for part in parts])) for ours, parts in plan.items()}


def to_onepeace(state: Mapping[str, Tensor], layout: Layout = Layout.FULL) -> dict[str, Tensor]:
    """Return a MultimodalModel's weights under the reference's names, without its buffers (see `buffers`)."""
    made = KEYS[layout].to_theirs(state)
    query = "classify_head.attn_pooling_func.q"
    if query in made:
        made[query] = made[query][None, None]
    return made


def _to_ours(name: str, tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.shape[-2:]) if name.endswith(QUERY) else tensor


def buffers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make the buffers that the reference wants beside its weights (their names), for loading them there."""
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        prefix, _, leaf = name.rpartition(".")
        table = re.fullmatch(r"(.+)\.rel_pos_table_list\.0\.weight", name)
        if table and table[1].endswith("image_adapter"):
            side = (round((tensor.shape[0] - 3) ** 0.5) + 1) // 2
            made[f"{table[1]}.rp_bucket"] = RelativeBias2d(side, 1).index(side, side)
        elif table:
            buckets = RelativeBias1d((tensor.shape[0] - 2) // 2, 1, MAX_POSITIONS)
            made[f"{table[1]}.rp_bucket"] = buckets.index(MAX_POSITIONS)
        elif leaf == "pos_embed":
            made[f"{prefix}.position_idx"] = torch.arange(tensor.shape[0])
        elif name.endswith("fusion_model.layers.0.self_attn_layer_norm.weight"):
            made[f"{name.partition('layers.')[0]}version"] = torch.tensor([FORMAT_VERSION])
    return made
