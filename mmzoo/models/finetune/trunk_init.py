"""Starts a trunk from a timm ViT: `timm:NAME` (published weights) or `timm-random:NAME` (timm's own random
start, no network)."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor, nn

from mmzoo.errors import CheckpointError, ConfigError, close_matches
from mmzoo.layers.norms import ModalityNorm
from mmzoo.modalities.timm_backbone import TimmAdapter
from mmzoo.modalities.timm_zoo import check_name, create_backbone
from mmzoo.models.vit.interop import from_timm
from mmzoo.trunk.feed_forward import ModalityFeedForward
from mmzoo.trunk.trunk import Trunk

log = logging.getLogger(__name__)
WHERE = "model.trunk.init_from"
SCHEMES = {"timm": True, "timm-random": False}
"""Before the colon -> whether published weights are fetched."""


def start_trunk(trunk: Trunk, source: str) -> None:
    """Load the blocks and the final norm of a ViT; every modality's feed-forward starts as the ViT's one.

    A trunk with fewer blocks takes the first ones. Options that make the trunk compute something else
    than the ViT are an error that says how to set them.
    """
    scheme, _, name = source.partition(":")
    if scheme not in SCHEMES or not name:
        do = close_matches(scheme, SCHEMES)
        raise ConfigError.at(WHERE, repr(source), "timm:NAME or timm-random:NAME", do)
    check_name(name, WHERE)
    options = TimmAdapter.Config(model=name, pretrained=SCHEMES[scheme])
    vit, _ = create_backbone(options, keep_head=True, where=WHERE)
    blocks = _check(trunk, vit, name)
    state = {k: v for k, v in from_timm(vit.state_dict()).items() if _block(k) < len(trunk.blocks)}
    missing, unexpected = trunk.load_state_dict(_spread(state, trunk), strict=False)
    if missing or unexpected:
        found = (
            f"{len(missing)} tensors of the trunk without a counterpart ({[*missing, *unexpected][0]} first)"
        )
        do = "Use the mixer attention and a feed-forward of type modality or shared."
        raise CheckpointError.at(WHERE, found, "plain ViT blocks", do)
    log.info("trunk: %d of %d blocks and the norm start from %s", len(trunk.blocks), blocks, source)


def _spread(state: dict[str, Tensor], trunk: Trunk) -> dict[str, Tensor]:
    """Give the one feed-forward and the one norm to each modality where the trunk keeps them apart."""
    apart = any(isinstance(m, ModalityFeedForward) for m in trunk.modules())
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if apart and ".ffn.network." in name:
            names = [name.replace(".network.", f".networks.{m}.") for m in trunk.modalities]
        elif name.startswith("norm.") and isinstance(trunk.norm, ModalityNorm):
            names = [name.replace("norm.", f"norm.norms.{m}.", 1) for m in trunk.modalities]
        else:
            names = [name]
        made |= dict.fromkeys(names, tensor)
    return made


def _block(name: str) -> int:
    words = name.split(".")
    return int(words[1]) if words[0] == "blocks" else -1


def _check(trunk: Trunk, vit: Any, name: str) -> int:
    """Return the number of the ViT's blocks; raise one error that lists every option that differs."""
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(vit, VisionTransformer) or not _is_plain(vit):
        found = f"{name} is no plain pre-norm VisionTransformer"
        raise ConfigError.at(WHERE, found, "one such as vit_tiny_patch16_224", "Choose another.")
    wanted, have = wanted_options(vit), trunk.config.to_dict()
    given = {key: _at(have, key) for key in wanted}
    if given["ffn.hidden_dim"] is None:
        given["ffn.hidden_dim"] = 4 * trunk.config.dim
    wrong = {k: v for k, v in wanted.items() if given[k] != v}
    blocks = sum(1 for _ in vit.blocks.children())
    if len(trunk.blocks) > blocks:
        wrong["depth"] = blocks
    if trunk.norm is None:
        wrong["final_norm"] = "per_modality"
    if wrong:
        found = ", ".join(f"{k} {_text(_at(have, k))}" for k in wrong)
        do = "Set " + " ".join(f"model.trunk.{k}={_text(v)}" for k, v in wrong.items()) + "."
        raise ConfigError.at(WHERE, found, f"the options of {name}", do)
    return blocks


def wanted_options(vit: Any) -> dict[str, Any]:
    """Return the options with which a trunk's blocks compute what the ViT's do."""
    block = vit.blocks[0]
    scaled = isinstance(getattr(block.ls1, "gamma", None), nn.Parameter)
    return {
        "dim": vit.embed_dim,
        "num_heads": block.attn.num_heads,
        "norm_eps": block.norm1.eps,
        "mixer.type": "attention",
        "mixer.qkv_bias": "none" if block.attn.qkv.bias is None else "all",
        "mixer.sub_norm": isinstance(getattr(block.attn, "norm", None), nn.LayerNorm),
        "mixer.head_gain": False,
        "ffn.activation": "gelu",
        "ffn.hidden_dim": block.mlp.fc1.out_features,
        "ffn.sub_norm": isinstance(block.mlp.norm, nn.LayerNorm),
        **({} if scaled else {"layer_scale_init": None}),
    }


def _is_plain(vit: Any) -> bool:
    """Say whether the blocks are pre-norm attention and MLP with the exact GELU."""
    block = vit.blocks[0] if len(vit.blocks) else None
    act = getattr(getattr(block, "mlp", None), "act", None)
    layers = (getattr(block, "norm1", None), getattr(vit, "norm", None))
    exact = isinstance(act, nn.GELU) and act.approximate == "none"
    return exact and all(isinstance(layer, nn.LayerNorm) for layer in layers)


def _at(tree: dict[str, Any], key: str) -> Any:
    value: Any = tree
    for word in key.split("."):
        value = value.get(word) if isinstance(value, dict) else None
    return value


def _text(value: Any) -> str:
    """Write a value as YAML does."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
