"""fMRI: each subject's voxels through an adapter of their own into a code that a shared core makes tokens of.

Axis letters: k rows, v voxels (padded to the largest subject of the batch), r repeats, c hidden code, n
tokens, d width, w width of a token before the trunk's.
"""

from __future__ import annotations

import dataclasses
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.batch import DataInfo, Item, ModalityInput, TokenSequence
from mmzoo.errors import ConfigError, DataError, ShapeError
from mmzoo.layers.init import trunc_normal_
from mmzoo.modalities.arrays import read_npy
from mmzoo.modalities.base import ModalityAdapter, Preprocess

SUBJECT_IN_NAME = re.compile(r"(?<![0-9A-Za-z])(?:sub-[0-9A-Za-z]+|subj(?:ect)?[-_]?[0-9]+)", re.IGNORECASE)
"""A subject in a file name: sub-01 (BIDS), subj01 (NSD), subject_7."""


class Repeats(str, Enum):
    """What becomes of several measurements of one stimulus."""

    AVERAGE = "average"
    SAMPLE = "sample"


@dataclass(frozen=True)
class Scan:
    """Raw fMRI: values (voxels) or (repeats voxels) and the subject they are of (None where nobody said)."""

    values: Any
    subject: str | None = None


class FmriPreprocess(Preprocess):
    """From one stimulus' measurements to a voxel vector; z-scoring needs the training part and is the data's.

    Ref: MindEye1 (one of three repeats in training, their mean in evaluation), STTM (noise of sd 0.01).
    """

    @dataclass(kw_only=True)
    class Config(schema.Config):
        """Options; they belong to the weights."""

        repeats: Repeats = Repeats.AVERAGE
        "average: the mean of all repeats; sample: one at random in training, the mean in evaluation."
        noise_std: float = 0.0
        "Standard deviation of white noise added to each voxel in training (units of the values); 0 is off."
        clip: float | None = None
        "Limit the values to +- this (units of the values); null leaves them."

        def __post_init__(self) -> None:
            """Refuse negative amounts."""
            if self.noise_std < 0 or (self.clip is not None and self.clip <= 0):
                found = f"noise_std {self.noise_std}, clip {self.clip}"
                do = "Use 0 and null to switch them off."
                raise ConfigError.at("noise_std, clip", found, "noise_std >= 0 and clip > 0", do)

    def __init__(self, config: Any) -> None:
        """Keep the options."""
        self.config = config

    def decode(self, data: bytes, name: str) -> Scan:
        """Read a .npy array (voxels) or (repeats voxels); the subject is the one in the file name, if any."""
        values = read_npy(data, name)
        found = SUBJECT_IN_NAME.search(name)
        return Scan(values, found[0] if found else None)

    def __call__(self, raw: Any, *, generator: torch.Generator | None = None) -> Item:
        """Return the voxel vector and its subject."""
        if not isinstance(raw, Scan):
            raise DataError.at(
                "fmri", type(raw).__name__, "a Scan(values, subject)", "Wrap the array in a Scan."
            )
        if not raw.subject:
            do = "Put sub-<name> in the file name or give the subject in a column."
            raise DataError.at("fmri", "a scan without a subject", "the name of its subject", do)
        values = torch.as_tensor(raw.values)
        if values.ndim not in (1, 2) or not values.numel() or values.is_complex():
            found = f"{raw.subject}: values {tuple(values.shape)}"
            raise DataError.at(
                "fmri", found, "(voxels) or (repeats voxels)", "Apply a mask to volumes first."
            )
        return Item(self._one(values.float(), generator).contiguous(), subject=raw.subject)

    def _one(self, values: Float[Tensor, "*r v"], generator: torch.Generator | None) -> Float[Tensor, " v"]:
        if values.ndim == 2:
            sampled = generator is not None and self.config.repeats is Repeats.SAMPLE
            values = (
                values[int(torch.randint(len(values), (), generator=generator))]
                if sampled
                else values.mean(0)
            )
        if generator is not None and self.config.noise_std:
            values = values + self.config.noise_std * torch.randn(values.shape, generator=generator)
        limit = self.config.clip
        return values if limit is None else values.clamp(-limit, limit)


class FmriAdapter(ModalityAdapter):
    """Per-subject adapters over differing voxel counts, one shared core, a few tokens after a CLS token.

    Why: voxels of different people do not correspond; a linear map a person aligns them, the rest is shared.
    Shape: values (k v) with `subjects` -> tokens (k 1+n d).
    Math: code = core(blocks_s(dropout(gelu(norm(W_s x + b_s))))), s the subject; content = W_h
    gelu(norm(code)) cut into n tokens of `token_dim`; tokens = W content.
    Ref: STTM (See Through Their Minds), brain network, without its token attention: the trunk attends.
    """

    kind = "fmri"

    @dataclass(kw_only=True)
    class Config(ModalityAdapter.Config):
        """Options; STTM has hidden_dim 4096, 4 core blocks, 257 tokens of 128."""

        preprocess: FmriPreprocess.Config = field(default_factory=FmriPreprocess.Config)
        "From one stimulus' measurements to a voxel vector."
        subjects: dict[str, int] = field(default_factory=dict)
        "Subject -> number of voxels; left empty, the data set fills it."
        hidden_dim: int = 256
        "Width of the code that all subjects share."
        num_input_blocks: int = 1
        "Residual blocks of each subject's own."
        num_core_blocks: int = 2
        "Residual blocks of the shared core."
        num_tokens: int = 8
        "Tokens a scan gives, CLS not counted."
        token_dim: int = 32
        "Width of a token before it is widened to the trunk's."
        subject_dropout: float = 0.5
        "Dropout after a subject's linear map (probability)."
        dropout: float = 0.15
        "Dropout in each residual block (probability)."

        def __post_init__(self) -> None:
            """Check sizes and probabilities."""
            for name in ("hidden_dim", "num_tokens", "token_dim"):
                if getattr(self, name) < 1:
                    raise ConfigError.at(name, f"{getattr(self, name)}", "one or more", "Raise it.")
            for name in ("subject_dropout", "dropout"):
                if not 0 <= getattr(self, name) < 1:
                    raise ConfigError.at(
                        name, f"{getattr(self, name)}", "a probability in 0..1", "Use 0 for none."
                    )
            wrong = [
                f"{subject}: {voxels}"
                for subject, voxels in self.subjects.items()
                if voxels < 1 or not subject
            ]
            if wrong:
                raise ConfigError.at(
                    "subjects", ", ".join(wrong), "a name and at least one voxel", "Mend them."
                )

    def __init__(self, config: Config, *, name: str, dim: int, num_heads: int) -> None:
        """Build an adapter for each subject and the shared part."""
        super().__init__(config, name=name, dim=dim, num_heads=num_heads)
        self.subjects = nn.ModuleDict()
        for subject, voxels in config.subjects.items():
            self.subjects[module_key(subject)] = SubjectAdapter(config, voxels)
        width = config.hidden_dim
        self.core = nn.Sequential(
            *(ResidualBlock(width, config.dropout) for _ in range(config.num_core_blocks))
        )
        self.norm = nn.LayerNorm(width)
        self.to_tokens = nn.Linear(width, config.num_tokens * config.token_dim)
        self.projection = nn.Linear(config.token_dim, dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.sole: str | None = None
        trunc_normal_(self.cls_token)

    def forward(self, x: ModalityInput) -> TokenSequence:
        """Embed the scans, each through the adapter of its subject."""
        tokens = self.projection(self.encode_tokens(x))
        cls = self.cls_token.expand(len(x), -1, -1).to(tokens.dtype)
        valid = torch.ones(len(x), 1 + self.config.num_tokens, dtype=torch.bool)
        return TokenSequence(torch.cat([cls, tokens], dim=1), valid, x.index, self.name, num_prefix=1)

    def encode_tokens(self, x: ModalityInput) -> Float[Tensor, "k n w"]:
        """Turn the scans into narrow tokens, as STTM's shared part does."""
        code = self.core(self.encode_subjects(x))
        content = self.to_tokens(nn.functional.gelu(self.norm(code)))
        return content.unflatten(1, (self.config.num_tokens, self.config.token_dim))

    def encode_subjects(self, x: ModalityInput) -> Float[Tensor, "k c"]:
        """Run each row through the adapter of its subject; rows are grouped on the host."""
        rows = self._rows_by_subject(x)
        if len(rows) == 1:
            (subject,) = rows
            return self.adapter_of(subject)(x.values[:, : self.config.subjects[subject]])
        parts: list[Tensor] = []
        for subject, places in rows.items():
            chosen = torch.tensor(places).to(x.values.device, non_blocking=True)
            parts.append(self.adapter_of(subject)(x.values[chosen, : self.config.subjects[subject]]))
        order = torch.tensor([place for places in rows.values() for place in places]).argsort()
        return torch.cat(parts)[order.to(x.values.device, non_blocking=True)]

    def _rows_by_subject(self, x: ModalityInput) -> Mapping[str, list[int]]:
        if x.subjects is None:
            raise ShapeError.at(
                self.name, "scans without subjects", "a subject for each row", "Use collate()."
            )
        rows: dict[str, list[int]] = {}
        for row, (subject, voxels) in enumerate(zip(x.subjects, x.sizes[:, 0].tolist(), strict=True)):
            known = self._voxels(subject)
            if voxels != known:
                found = f"{voxels} voxels of subject {subject!r}"
                raise ShapeError.at(self.name, found, f"{known}", "Use the mask the model was trained with.")
            rows.setdefault(subject, []).append(row)
        return rows

    def _voxels(self, subject: str) -> int:
        if subject not in self.config.subjects:
            known = f"one of {', '.join(self.config.subjects) or 'none'}"
            do = f"Call add_subject({subject!r}, num_voxels) and train it."
            raise ShapeError.at(self.name, f"subject {subject!r} is unknown to the model", known, do)
        return self.config.subjects[subject]

    def adapter_of(self, subject: str) -> SubjectAdapter:
        """Return the adapter of one subject; an unknown one gets the list of the known."""
        self._voxels(subject)
        return cast("SubjectAdapter", self.subjects[module_key(subject)])

    def add_subject(self, subject: str, num_voxels: int) -> SubjectAdapter:
        """Make room for a new person (fresh weights); the options name them too, so that exports do."""
        if not subject or num_voxels < 1 or subject in self.config.subjects:
            found = f"{subject!r} with {num_voxels} voxels"
            known = f"a new name (known: {', '.join(self.config.subjects) or 'none'}) and at least one voxel"
            do = "Choose another name or train the old one."
            raise ConfigError.at(f"{self.name}.add_subject", found, known, do)
        module = SubjectAdapter(self.config, num_voxels).to(self.cls_token)
        self.subjects[module_key(subject)] = module.train(self.training)
        self.config.subjects[subject] = num_voxels
        return module

    def freeze_except(self, subject: str) -> None:
        """Train one subject's adapter only: the rest takes no gradient and stays in evaluation mode.

        Ref: STTM's transfer to a new subject. `unfreeze` takes it back.
        """
        chosen = self.adapter_of(subject)
        self.requires_grad_(False)  # noqa: FBT003 torch's signature
        chosen.requires_grad_()
        self.sole = subject
        self.train(self.training)

    def unfreeze(self) -> None:
        """Train everything again."""
        self.sole = None
        self.requires_grad_()
        self.train(self.training)

    def train(self, mode: bool = True) -> Any:  # noqa: FBT001, FBT002 torch's signature
        """Set the mode; what `freeze_except` froze stays in evaluation mode."""
        super().train(mode and self.sole is None)
        if self.sole is not None:
            self.training = mode
            self.adapter_of(self.sole).train(mode)
        return self

    @classmethod
    def resolve(cls, config: Any, info: DataInfo) -> Any:
        """Take the subjects from the data set where the options name none."""
        if config.subjects or not info.subjects:
            return config
        return dataclasses.replace(config, subjects=dict(info.subjects))

    @classmethod
    def fake_input(cls, config: Any, rows: int, generator: torch.Generator) -> ModalityInput:
        """Make noise of all subjects in turn."""
        if not config.subjects:
            do = "Set subjects or resolve the options with a data set."
            raise ConfigError.at("subjects", "none", "subject -> number of voxels", do)
        names = list(config.subjects)
        subjects = tuple(names[row % len(names)] for row in range(rows))
        sizes = torch.tensor([[config.subjects[subject]] for subject in subjects])
        values = torch.randn(rows, int(sizes.max()), generator=generator) * (
            torch.arange(int(sizes.max())) < sizes
        )
        return ModalityInput(values, torch.arange(rows), sizes, subjects=subjects)


class SubjectAdapter(nn.Module):
    """One person's voxels into the shared code: linear map, norm, GELU, dropout, residual blocks."""

    def __init__(self, config: FmriAdapter.Config, num_voxels: int) -> None:
        """Build it for a number of voxels."""
        super().__init__()
        self.linear = nn.Linear(num_voxels, config.hidden_dim)
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.dropout = nn.Dropout(config.subject_dropout)
        blocks = (ResidualBlock(config.hidden_dim, config.dropout) for _ in range(config.num_input_blocks))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, voxels: Float[Tensor, "k v"]) -> Float[Tensor, "k c"]:
        """Encode."""
        return self.blocks(self.dropout(nn.functional.gelu(self.norm(self.linear(voxels)))))


class ResidualBlock(nn.Module):
    """x + dropout(gelu(norm(W x + b))). (k c) -> (k c)."""

    def __init__(self, dim: int, dropout: float) -> None:
        """Build it."""
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "k c"]) -> Float[Tensor, "k c"]:
        """Refine."""
        return x + self.dropout(nn.functional.gelu(self.norm(self.linear(x))))


def module_key(subject: str) -> str:
    """Return the name of a subject's module: any text, dots included, as one reversible word."""
    return "of-" + urllib.parse.quote(subject, safe="").replace(".", "%2E")
