"""Any timm model as teacher: the features that its classifier would read."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from mmzoo.batch import ModalityInput, Prediction, PredictionKind
from mmzoo.modalities.timm_backbone import Output, TimmAdapter
from mmzoo.modalities.timm_zoo import create_backbone
from mmzoo.models.teachers.base import Teacher, TeacherConfig, single

IMAGE = "image"


class TimmTeacher(Teacher):
    """features: the pooled vector before timm's classifier (`num_classes=0`). Its input is `image`."""

    @dataclass(kw_only=True)
    class Config(TeacherConfig):
        """Which model, with which weights."""

        model: str = "resnet18"
        """timm's name of the model (timm.list_models()), a weights tag after a dot allowed"""
        pretrained: bool = False
        """whether it has timm's published weights (fetched once, then cached)"""
        create: dict[str, Any] = field(default_factory=dict[str, Any])
        """more arguments of timm.create_model, such as img_size"""
        seed: int = 0
        """of random weights, where pretrained is false"""

        def __post_init__(self) -> None:
            """Check the name and the arguments as the adapter does."""
            self.adapter()

        def adapter(self) -> TimmAdapter.Config:
            """Return the options of timm's adapter of the same model."""
            return TimmAdapter.Config(
                model=self.model, pretrained=self.pretrained, create=self.create, out=Output.POOLED
            )

    gives: ClassVar[tuple[PredictionKind, ...]] = (PredictionKind.FEATURES,)

    def build_module(self) -> nn.Module:
        """Make the backbone without its classifier."""
        return create_backbone(self.config.adapter(), keep_head=True, where=self.where)[0]

    @functools.cached_property
    def sources(self) -> Mapping[str, Any]:
        """Options of timm's adapter of the same model."""
        return {IMAGE: self.config.adapter()}

    @property
    def source(self) -> str:
        """Say which weights."""
        return f"timm {self.config.model}" + (
            "" if self.config.pretrained else f", random weights of seed {self.config.seed}"
        )

    def features(
        self, inputs: Mapping[str, ModalityInput], passes: Sequence[str], ids: tuple[str, ...]
    ) -> dict[str, Prediction]:
        """Run the backbone on each pass."""
        del ids
        rows = {p: inputs[single(p, self.where)] for p in passes}
        return {p: Prediction(self.module(x.values), x.index) for p, x in rows.items()}
