"""Towers of any open_clip model as teacher: embeddings, or class logits from prompts (zero-shot)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmzoo.batch import ModalityInput, Prediction, PredictionKind
from mmzoo.errors import ConfigError
from mmzoo.modalities.open_clip_image import OpenClipImageAdapter
from mmzoo.modalities.open_clip_text import OpenClipTextAdapter, padded_ids
from mmzoo.modalities.open_clip_tower import TowerOutput
from mmzoo.modalities.open_clip_zoo import OpenClipModel, check_name, create_whole, first_tag
from mmzoo.models.teachers.base import Teacher, TeacherConfig, single

IMAGE, TEXT = "image", "text"


class OpenClipTeacher(Teacher):
    """features: what `encode_image` and `encode_text` give, not normalised. classes: logits s cos(x, c)
    against the mean c of the unit vectors of a class's prompts, s the model's own scale.

    Its inputs are `image` and `text`. Ref: Radford et al. 2021, section 3.1.4 (prompts).
    """

    @dataclass(kw_only=True)
    class Config(OpenClipModel, TeacherConfig):
        """Which model, and how classes are said."""

        templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])
        """sentences around a class name, {} in its place, where class logits are wanted"""
        seed: int = 0
        """of random weights, where pretrained is false"""

        def __post_init__(self) -> None:
            """Check the name and the sentences."""
            check_name(self.model, self.tag, "open_clip")
            if not self.templates or any("{}" not in t for t in self.templates):
                found = str(self.templates)
                raise ConfigError.at("templates", found, "sentences with {}", "Write [a photo of a {}.].")

    gives: ClassVar[tuple[PredictionKind, ...]] = (PredictionKind.FEATURES, PredictionKind.CLASSES)

    def build_module(self) -> nn.Module:
        """Make both towers."""
        return create_whole(self.config, self.where)

    def drop_unused(self) -> None:
        """Drop the tower that no pass reads."""
        model: Any = self.module
        for own, part in ((IMAGE, "visual"), (TEXT, "text")):
            if own not in self.inputs.values():
                setattr(model, part, nn.Identity())

    @functools.cached_property
    def sources(self) -> Mapping[str, Any]:
        """Options of open_clip's adapters of the same model."""
        given = {k: getattr(self.config, k) for k in ("model", "tag", "pretrained", "create")}
        return {
            IMAGE: OpenClipImageAdapter.Config(out=TowerOutput.POOLED, **given),
            TEXT: OpenClipTextAdapter.Config(out=TowerOutput.POOLED, **given),
        }

    @property
    def source(self) -> str:
        """Say which weights."""
        config: OpenClipTeacher.Config = self.config
        if not config.pretrained:
            return f"open_clip {config.model}, random weights of seed {config.seed}"
        return f"open_clip {config.model} {first_tag(config.model, config.tag)}".rstrip()

    def features(
        self, inputs: Mapping[str, ModalityInput], passes: Sequence[str], ids: tuple[str, ...]
    ) -> dict[str, Prediction]:
        """Embed each pass."""
        del ids
        rows = {p: inputs[single(p, self.where)] for p in passes}
        return {p: Prediction(self._embed(self.inputs[p], x), x.index) for p, x in rows.items()}

    def classes(
        self, inputs: Mapping[str, ModalityInput], passes: Sequence[str], ids: tuple[str, ...]
    ) -> dict[str, Prediction]:
        """Compare each pass with the classes' prompts."""
        model: Any = self.module
        found: dict[str, Prediction] = {}
        for name, given in self.features(inputs, passes, ids).items():
            vectors = F.normalize(given.values.float(), dim=1)
            prompts = self.prompts.to(vectors.device)
            found[name] = Prediction(model.logit_scale.exp().float() * vectors @ prompts.T, given.index)
        return found

    @torch.no_grad()
    def learn_classes(self, names: tuple[str, ...]) -> None:
        """Embed the prompts of every class."""
        prepare = self.sources[TEXT].preprocess.build()
        sentences = [t.format(n.replace("_", " ")) for n in names for t in self.config.templates]
        vectors: list[Tensor] = []
        for start in range(0, len(sentences), 256):
            items = [prepare(s) for s in sentences[start : start + 256]]
            rows = ModalityInput.stack(items, torch.arange(len(items)))
            vectors.append(F.normalize(self._embed(TEXT, rows).float(), dim=1))
        by_class = torch.cat(vectors).unflatten(0, (len(names), -1))
        self.prompts: Float[Tensor, "classes e"] = F.normalize(by_class.mean(1), dim=1)

    def _embed(self, own: str, x: ModalityInput) -> Float[Tensor, "k e"]:
        model: Any = self.module
        if own == TEXT and not hasattr(model.text, "token_embedding"):
            found = f"{self.config.model} has a text tower of another library"
            raise ConfigError.at(self.where, found, "one of open_clip's own", "Choose another model.")
        given = model.visual(x.values) if own == IMAGE else model.text(padded_ids(x, model.text)[0])
        return given[0] if isinstance(given, tuple) else given  # CoCa's towers give their tokens too
