"""A released file's weights under our names, read one by one, never all in memory at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from mmzoo.checkpoints.archives import Archive, open_archive
from mmzoo.checkpoints.key_map import stack
from mmzoo.errors import CheckpointError
from mmzoo.heads.classifier import Classifier
from mmzoo.heads.contrastive import ContrastiveHead
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.models.onepeace import interop, options


@dataclass(frozen=True)
class OnePeaceWeights:
    """`loading.Weights` of a ONE-PEACE file.

    `left_out` lists, by kind, what of the file is no weight of ours: buffers, objects that were refused.
    """

    archive: Archive
    plan: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, tuple[str, ...]]

    def keys(self) -> list[str]:
        """Return our names."""
        return list(self.plan)

    def shape(self, name: str, /) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        parts = [self.archive.shape(part) for part in self.plan[name]]
        if name.endswith(interop.QUERY):
            return parts[0][-2:]
        return (sum(p[0] for p in parts), *parts[0][1:]) if len(parts) > 1 else parts[0]

    def read(self, name: str, /) -> Tensor:
        """Read a tensor."""
        return stack([self.archive.read(part) for part in self.plan[name]]).reshape(self.shape(name))

    def options(self) -> MultimodalModel.Config:
        """Return the options of the model that the file holds."""
        return options.options_of(self.archive.shapes())

    def for_model(self, model: MultimodalModel) -> OnePeaceWeights:
        """Call the file's heads as the model calls its own, where it has one of the kind."""
        names = {"align": _only(model, ContrastiveHead), "classify": _only(model, Classifier)}
        plan = {_renamed(ours, names): parts for ours, parts in self.plan.items()}
        return OnePeaceWeights(self.archive, plan, self.left_out)

    def lines(self) -> list[str]:
        """Return one line for each kind of what was left out."""
        return [
            f"{kind} ({len(names)}): {', '.join(names[:8])}" for kind, names in self.left_out.items() if names
        ]


def open_onepeace(path: Path) -> OnePeaceWeights:
    """Open a file in any of the reference's layouts; raise CheckpointError where it is none of its files."""
    archive = open_archive(path)
    if interop.layout_of(archive.keys()) is None:
        found = f"tensors called {', '.join(archive.keys()[:3])} …"
        do = "Load a run, an export or a card's weights."
        raise CheckpointError.at(str(path), found, "a checkpoint of mmzoo or of ONE-PEACE", do)
    reading = interop.read_names(archive.keys())
    left_out = {
        "no weights": reading.buffers,
        "of the pretraining decoder": reading.decoder,
        "refused": archive.refused,
    }
    return OnePeaceWeights(archive, reading.plan, left_out)


def _only(model: MultimodalModel, kind: type[nn.Module]) -> str | None:
    found = [name for name, head in model.heads.items() if isinstance(head, kind)]
    return found[0] if len(found) == 1 else None


def _renamed(name: str, heads: Mapping[str, str | None]) -> str:
    for theirs, ours in heads.items():
        if ours and name.startswith(f"heads.{theirs}."):
            return name.replace(f"heads.{theirs}.", f"heads.{ours}.", 1)
    return name
