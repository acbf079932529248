"""The dense side of a model: which heads read a decoder's maps, how the decoder is built, how it is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmzoo.batch import FeatureMap
from mmzoo.decoders.base import Decoder, DecoderConfig, Source
from mmzoo.errors import ConfigError
from mmzoo.models.encoding import Encoding


class Maps(NamedTuple):
    """What a decoder gave: task -> pass -> feature map; aux scalars; statistics by pass."""

    maps: dict[str, dict[str, FeatureMap]]
    aux: dict[str, Tensor]
    stats: dict[str, Any]


def is_dense(head: Any) -> bool:
    """Return whether the head of these options reads a decoder's feature map instead of tokens."""
    return bool(getattr(type(head).owner, "reads_maps", False))


def build_decoder(
    config: DecoderConfig | None, passes: Mapping[str, tuple[str, ...]], adapters: nn.ModuleDict, trunk: Any
) -> Decoder | None:
    """Build the decoder of the dense tasks (task -> passes); None where there are none of these.

    `adapters` by modality; `trunk` the trunk's options.
    """
    if not passes:
        return None
    task = next(iter(passes))
    if config is None:
        do = "Set model.decoder.type=multi_head, or another row of the decoders table."
        raise ConfigError.at(f"heads.{task}", "a dense head", "a model with a decoder", do)
    if config.source is Source.TRUNK:
        dims = (trunk.dim,) * (1 + len(config.taps_of(trunk.depth)))
        return config.build(dims=dims, tasks=tuple(passes))
    names = dict.fromkeys(m for own in passes.values() for p in own for m in p.split("+"))
    found = {tuple(getattr(adapters[m], "level_dims", ())) for m in names} - {()}
    if len(found) != 1:
        do = "Use modalities.NAME.type=timm with levels."
        what = "adapters with different feature maps" if found else "no adapter with feature maps"
        raise ConfigError.at("model.decoder.source=backbone", what, "a backbone's levels", do)
    return config.build(dims=found.pop(), tasks=tuple(passes))


def decode(
    decoder: Decoder,
    encodings: Mapping[str, Mapping[str, Encoding]],
    sizes: Mapping[str, tuple[int, int]],
    generator: torch.Generator | None,
) -> Maps:
    """Run the decoder on each pass for the tasks that read it.

    encodings: task -> pass -> its encoding; sizes: modality -> height and width in pixels of its images.
    """
    found = Maps({task: {} for task in encodings}, {}, {})
    aux: dict[str, list[Tensor]] = {}
    backbone = decoder.config.source is Source.BACKBONE
    for name in dict.fromkeys(p for own in encodings.values() for p in own):
        readers = {task: own[name] for task, own in encodings.items() if name in own}
        levels = {task: e.backbone_levels if backbone else e.levels for task, e in readers.items()}
        decoded = decoder(levels, generator)
        for task, values in decoded.features.items():
            picture = readers[task].sequences[readers[task].picture]
            found.maps[task][name] = FeatureMap(values, picture.index, sizes[picture.modality])
        for key, value in decoded.aux.items():
            aux.setdefault(f"decoder/{key}", []).append(value)
        found.stats.update({f"decoder/{name}/{key}": value for key, value in decoded.stats.items()})
    found.aux.update({key: torch.stack(values).mean() for key, values in aux.items()})
    return found
