"""The denoising head: hides tokens, has a small decoder fill them in, and gives what a teacher saw there.

Why: it is built from a trunk, which heads do not know, so it lives with the models.
Axis letters: k rows, n tokens, d width of the trunk, w width of the decoder, q hidden tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.batch import Prediction, PredictionKind, TokenPrediction, TokenSequence
from mmzoo.errors import ConfigError, close_matches
from mmzoo.heads.masked import Hidden, InputFacts, MaskedHead
from mmzoo.layers.axis_positions import AxisPositions
from mmzoo.layers.init import trunc_normal_
from mmzoo.layers.masking import Maskable
from mmzoo.layers.masks import BlockMask, Mask, MaskConfig, Prefer, RandomMask, WordMask
from mmzoo.layers.positions import GridPositions
from mmzoo.layers.rows import scatter_rows, take_rows
from mmzoo.trunk.trunk import Trunk

JOINT = "+"
MASKS: dict[str, MaskConfig] = {
    "text": WordMask.Config(share=0.15),
    "image": RandomMask.Config(share=0.75),
    "audio": BlockMask.Config(share=0.55),
    "skeleton": BlockMask.Config(share=0.55, length=3),
    "": RandomMask.Config(share=0.5),
}
"""By kind of modality, what its own pass hides by default: ONE-PEACE's for text, image and audio."""
JOINT_MASKS: dict[str, MaskConfig] = {
    "text": RandomMask.Config(share=0.4, prefer=Prefer.SHOWN),
    "image": RandomMask.Config(share=0.6875, prefer=Prefer.SHOWN),
    "audio": BlockMask.Config(share=0.45),
    "skeleton": BlockMask.Config(share=0.45, length=3),
    "": RandomMask.Config(share=0.4, prefer=Prefer.SHOWN),
}
"""The same for joint passes."""


class DecoderPadding(str, Enum):
    """What the decoder sees where a row is shorter than the longest of its batch."""

    SKIP = "skip"
    """nothing: padding is not computed"""
    REFERENCE = "reference"
    """tokens of zeros, which are attended to"""


@dataclass(kw_only=True)
class DecoderConfig(Trunk.Config):
    """The decoder's blocks; the defaults are those of the released model (whose ffn.hidden_dim is 2048)."""

    dim: int = 768
    """width of the decoder"""
    depth: int = 2
    """number of blocks"""
    num_heads: int = 12
    """attention heads"""
    layer_scale_init: float | None = None
    """start of LayerScale; null: none"""


class DenoisingHead(MaskedHead):
    """Student: visible tokens -> trunk -> decoder with mask tokens in the holes -> one vector a hidden token.
    Teacher: the trunk's tokens of the whole pass, without gradient.

    Math: visible x_n become E_m x_n + p_n, hidden ones mask_m + p_n (p: the decoder's own positions); decoder
    blocks without relative bias; student z_n = H_m decoder(…)_n. All matrices and tokens by modality m.
    Shape: for every modality of every pass a TokenPrediction, named `image` or `image+text/text`.
    Weights: `embeds.<m>.*`, `mask_tokens.<m>`, `positions.<m>.table`, `trunk.*` (the decoder),
    `mask_heads.<m>.*`.
    Ref: ONE-PEACE section 3.2.
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """What is hidden, who teaches, how the decoder is built."""

        decoder: DecoderConfig = field(default_factory=DecoderConfig)
        """size of the decoder"""
        masks: dict[str, Any] = schema.many("masks")
        """modality -> what its own pass hides; not named: as ONE-PEACE for its kind"""
        joint_masks: dict[str, Any] = schema.many("masks")
        """modality, or pass/modality, -> what joint passes hide; not named: as ONE-PEACE for its kind"""
        # compat(onepeace): stage 2 has {audio: text+audio}
        teachers: dict[str, str] = field(default_factory=dict)
        """pass -> the pass whose whole tokens teach it, of at least its modalities; not named: itself"""
        # compat(onepeace): the decoder has no padding mask
        padding: DecoderPadding = DecoderPadding.SKIP
        """whether the decoder attends to padding"""
        # compat(onepeace): its code never reads these tensors, but its files hold them
        unread_tokens: bool = False
        """hold ONE-PEACE's frozen, unread decoder tokens, so that its weights go there and back whole"""

    gives: ClassVar[PredictionKind] = PredictionKind.TOKENS

    def __init__(
        self, config: Config, *, dim: int, passes: tuple[str, ...], inputs: Mapping[str, InputFacts]
    ) -> None:
        """Build the decoder and, for every modality of the passes, what leads into it and out of it."""
        super().__init__(config, dim=dim, passes=passes, inputs=inputs)
        modalities = tuple(m for m in inputs if any(m in p.split(JOINT) for p in passes))
        self._check(config, modalities)
        width = config.decoder.dim
        self.embeds = nn.ModuleDict({m: nn.Linear(dim, width) for m in modalities})
        self.mask_tokens = nn.ParameterDict(
            {m: nn.Parameter(trunc_normal_(torch.empty(1, width))) for m in modalities}
        )
        self.positions = nn.ModuleDict({m: _positions(inputs[m].extent, width) for m in modalities})
        self.trunk: Trunk = config.decoder.build(modalities=modalities)
        self.mask_heads = nn.ModuleDict({m: nn.Linear(width, dim) for m in modalities})
        for layer in (*self.embeds.values(), *self.mask_heads.values()):
            trunc_normal_(layer.get_parameter("weight"))
            nn.init.zeros_(layer.get_parameter("bias"))
        self.unread = nn.ParameterDict()
        if config.unread_tokens:
            shapes = {f"{m}_cls": (1, 1, width) for m in modalities}
            shapes |= {f"{m}_mask": (1, width) for m in modalities if inputs[m].kind == "audio"}
            for name, shape in shapes.items():
                self.unread[name] = nn.Parameter(trunc_normal_(torch.empty(shape)), requires_grad=False)

    def teachers(self) -> tuple[str, ...]:
        """Name the passes it wants whole."""
        return tuple(dict.fromkeys(self.teacher_of(p) for p in self.passes))

    def teacher_of(self, pass_name: str) -> str:
        """Name the pass that teaches another."""
        return self.config.teachers.get(pass_name, pass_name)

    def mask_of(self, pass_name: str, modality: str) -> Mask:
        """Return the recipe for a modality in a pass."""
        kind, config = self.inputs[modality].kind, self.config
        if JOINT not in pass_name:
            chosen = config.masks.get(modality, MASKS.get(kind, MASKS[""]))
        else:
            default = config.joint_masks.get(modality, JOINT_MASKS.get(kind, JOINT_MASKS[""]))
            chosen = config.joint_masks.get(f"{pass_name}/{modality}", default)
        return chosen.build()

    def draw(self, what: Mapping[str, Maskable], generator: torch.Generator) -> Hidden:
        """Draw the masks of single passes first: joint ones may depend on them."""
        hidden: dict[str, dict[str, Bool[Tensor, "k n"]]] = {}
        alone: dict[str, Bool[Tensor, "k n"]] = {}
        for name in sorted(self.passes, key=lambda p: JOINT in p):
            present = [m for m in name.split(JOINT) if m in what]
            hidden[name] = {m: self.mask_of(name, m)(what[m], generator, alone.get(m)) for m in present}
            if JOINT not in name:
                alone |= hidden[name]
        return {p: hidden[p] for p in self.passes if hidden[p]}

    def compare(
        self,
        students: Mapping[str, Sequence[TokenSequence]],
        teachers: Mapping[str, Sequence[TokenSequence]],
        hidden: Hidden,
    ) -> dict[str, Prediction]:
        """Fill in every pass at once, and set each hidden token beside the teacher's tokens."""
        found: dict[str, Prediction] = {}
        for name, sequences in self.decode(students, hidden).items():
            whole = {s.modality: s for s in teachers[self.teacher_of(name)]}
            for s in sequences:
                part = f"{name}/{s.modality}" if JOINT in name else name
                found[part] = self._part(s, whole[s.modality], hidden[name][s.modality])
        return found

    def decode(
        self, students: Mapping[str, Sequence[TokenSequence]], hidden: Hidden
    ) -> dict[str, list[TokenSequence]]:
        """Return the decoder's tokens (k n w) of every pass, hidden places filled in."""
        if not students:
            return {}
        groups = [[self.filled(s, hidden[name][s.modality]) for s in own] for name, own in students.items()]
        return dict(zip(students, self.trunk(groups).groups, strict=True))

    def filled(self, s: TokenSequence, hidden: Bool[Tensor, "k n"]) -> TokenSequence:
        """Return what enters the decoder: narrowed visible tokens, mask tokens, positions."""
        k, n = s.valid.shape
        device = s.tokens.device
        visible = s.valid.flatten().nonzero()[:, 0].to(device, non_blocking=True)
        narrow = self.embeds[s.modality](take_rows(s.tokens.flatten(0, 1), visible))
        tokens = scatter_rows(narrow, visible, k * n).view(k, n, -1)
        holes = hidden[..., None].to(device, non_blocking=True)
        tokens = tokens + holes * self.mask_tokens[s.modality].to(tokens.dtype)
        tokens = tokens + self._place(s, hidden).to(tokens.dtype)
        real = s.valid | hidden
        if self.config.padding is DecoderPadding.REFERENCE:
            tokens = tokens * real[..., None].to(device, non_blocking=True)
            real = torch.ones_like(real)
        return TokenSequence(tokens, real, s.index, s.modality, s.grids, s.num_prefix)

    def _place(self, s: TokenSequence, hidden: Bool[Tensor, "k n"]) -> Float[Tensor, "_ n w"]:
        positions, n = self.positions[s.modality], s.valid.shape[1]
        if isinstance(positions, AxisPositions):
            places = torch.arange(1, n + 1) * (s.valid | hidden)
            return positions(places.amax(1), n)
        grids = s.grids or ((0, 0),)
        tables = {grid: positions(grid[0], grid[1]) for grid in dict.fromkeys(grids)}
        if len(tables) == 1:
            return tables[grids[0]][None]
        return torch.stack([F.pad(tables[grid], (0, 0, 0, n - len(tables[grid]))) for grid in grids])

    def _part(
        self, decoded: TokenSequence, teacher: TokenSequence, hidden: Bool[Tensor, "k n"]
    ) -> TokenPrediction:
        device = decoded.tokens.device
        body = teacher.valid.clone()
        body[:, : teacher.num_prefix] = False
        places = hidden.flatten().nonzero()[:, 0]
        keys = body.flatten().nonzero()[:, 0].to(device, non_blocking=True)
        rows = take_rows(decoded.tokens.flatten(0, 1), places.to(device, non_blocking=True))
        return TokenPrediction(
            self.mask_heads[decoded.modality](rows),
            decoded.index[places // hidden.shape[1]],
            keys=teacher.tokens.detach().flatten(0, 1).index_select(0, keys),
            own=(body.flatten().cumsum(0) - 1)[places],
        )

    def _check(self, config: Config, modalities: tuple[str, ...]) -> None:
        faults: list[str] = []
        for name, teacher in config.teachers.items():
            if name not in self.passes:
                do = close_matches(name, self.passes)
                faults.append(str(ConfigError.at("head.teachers", repr(name), "a pass of the task", do)))
            elif not set(name.split(JOINT)) <= set(teacher.split(JOINT)) <= set(self.inputs):
                expected, do = f"a pass that has {name}, of modalities of the model", "Name another pass."
                faults.append(str(ConfigError.at(f"head.teachers.{name}", repr(teacher), expected, do)))
        parts = {f"{p}/{m}" for p in self.passes if JOINT in p for m in p.split(JOINT)}
        for where, given, known in (
            ("head.masks", config.masks, set(modalities)),
            ("head.joint_masks", config.joint_masks, parts | set(modalities)),
        ):
            for name in given:
                if name not in known:
                    do = close_matches(name, known)
                    faults.append(str(ConfigError.at(where, repr(name), "a modality of the passes", do)))
        if faults:
            raise ConfigError("\n".join(faults))


def _positions(extent: tuple[int, ...], width: int) -> nn.Module:
    """Make a table of a grid's sides, or of a length."""
    if len(extent) == 2:
        return GridPositions(max(extent), width)
    return AxisPositions(extent[0], width)
