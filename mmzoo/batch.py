"""The nouns: what travels between the rooms. Absence is explicit everywhere; nothing stands in for what is
missing.

Axis letters: b samples, k rows (the samples that have a modality), n tokens, d width.
Masks and indices are *host* tensors (they stay on the CPU whatever the device of the values): the packed
plan is built from them without waiting for the device. True always means real.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mmzoo.errors import ShapeError

BESIDE = "@"


def beside_name(modality: str, teacher: str) -> str:
    """Name the input of a batch that holds a modality as a teacher reads it."""
    return f"{modality}{BESIDE}{teacher}"


@dataclass(frozen=True)
class Item:
    """One modality of one sample, preprocessed: `values` without a batch axis.

    Shape: image (c h w) float; audio (t) float; text (n) int; fmri (voxels) float; skeleton (c t v p) float
    with `valid` (t v p). `subject` names whose scan it is, for modalities that need it. `beside` holds what
    teachers want made of the same raw input, by teacher; in a batch it is the input `beside_name` gives.
    """

    values: Shaped[Tensor, ...]
    valid: Bool[Tensor, ...] | None = None
    subject: str | None = None
    beside: Mapping[str, Item] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One sample: an id that survives to the outputs, the modalities it has, and the labels it has.

    A label is a class number (), a vector with a score 0 … 1 for each of several, a vector of numbers (see
    `NumericKind`), or one for every pixel (see `DenseKind`) or voxel (see `SceneKind`). `lists` holds labels
    of which each sample has its own number, such as boxes around a vehicle: (n, ...) each. `source` names the
    data set it comes from where several are mixed. `several` holds the modalities of which it has several
    entries side by side, in their order (answers to choose from, captions of one picture); such a modality is
    not in `inputs`.
    """

    id: str
    inputs: Mapping[str, Item] = field(default_factory=dict)
    targets: Mapping[str, Shaped[Tensor, ...]] = field(default_factory=dict)
    source: str = ""
    several: Mapping[str, tuple[Item, ...]] = field(default_factory=dict)
    lists: Mapping[str, Shaped[Tensor, "n ..."]] = field(default_factory=dict)

    def entries(self, modality: str) -> tuple[Item, ...]:
        """Return all that it has of a modality: one entry, several, or none."""
        if modality in self.inputs:
            return (self.inputs[modality],)
        own, _, teacher = modality.partition(BESIDE)
        if teacher:
            return tuple(item.beside[teacher] for item in self.entries(own) if teacher in item.beside)
        return self.several.get(modality, ())

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities it has, what lies beside them included."""
        own = (*self.inputs, *(m for m, items in self.several.items() if items))
        names = {beside_name(m, t): None for m in own for item in self.entries(m) for t in item.beside}
        return (*own, *names)

    def validate(self) -> Sample:
        """Raise ShapeError where a value is not finite or a mask does not fit; return self."""
        if not self.modalities:
            raise ShapeError.at(
                f"sample {self.id}", "no modality", "at least one", "Drop the sample instead."
            )
        twice = [name for name in self.several if name in self.inputs]
        if twice:
            found = f"{twice[0]} in inputs and in several"
            raise ShapeError.at(f"sample {self.id}", found, "either", "Put all entries into several.")
        for name, item in [(m, item) for m in self.modalities for item in self.entries(m)]:
            _check_finite(f"sample {self.id}/{name}", item.values)
            tail = tuple(item.values.shape[-item.valid.ndim :]) if item.valid is not None else None
            if item.valid is not None and tuple(item.valid.shape) != tail:
                found = f"mask {tuple(item.valid.shape)} on values {tuple(item.values.shape)}"
                raise ShapeError.at(
                    f"sample {self.id}/{name}", found, "the trailing axes", "Mend the Preprocess."
                )
        return self

    def to(self, device: torch.device | str) -> Sample:
        """Copy with all values on `device`; masks stay on the host."""

        def moved(item: Item) -> Item:
            beside = {t: moved(other) for t, other in item.beside.items()}
            return dataclasses.replace(item, values=item.values.to(device), beside=beside)

        return dataclasses.replace(
            self,
            inputs={m: moved(i) for m, i in self.inputs.items()},
            several={m: tuple(map(moved, items)) for m, items in self.several.items()},
            targets={k: t.to(device) for k, t in self.targets.items()},
            lists={k: t.to(device) for k, t in self.lists.items()},
        )

    def __repr__(self) -> str:
        """Show shapes, not numbers."""
        shown = {m: _shape(i.values) for m, i in self.inputs.items()}
        shown |= {m: f"{len(items)} entries" for m, items in self.several.items()}
        inputs = ", ".join(f"{m} {shape}" for m, shape in shown.items())
        targets = ", ".join(f"{k} {_shape(t)}" for k, t in {**self.targets, **self.lists}.items())
        return f"Sample({self.id!r}: {inputs or 'nothing'} | targets: {targets or 'none'})"


@dataclass(frozen=True)
class ModalityInput:
    """One modality of a batch: one row for each sample that has it, none for those that have not; of a sample
    with several entries, a row for each, next to each other and in their order.

    Shape: values (k, *axes), padded at the end of each axis; index (k) the sample of each row, ascending;
    sizes (k, axes) the real extent of each row; valid (k, ...) holes inside the extent (skeleton t v p).
    """

    values: Shaped[Tensor, "k ..."]
    index: Int[Tensor, " k"]
    sizes: Int[Tensor, "k axes"]
    valid: Bool[Tensor, "k ..."] | None = None
    subjects: tuple[str, ...] | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.values.shape[0]

    @staticmethod
    def stack(items: Sequence[Item], index: Int[Tensor, " k"]) -> ModalityInput:
        """Pad items at the end of each axis to the largest extent and stack them; `index` their samples,
        ascending."""
        sizes = torch.tensor([tuple(i.values.shape) for i in items], dtype=torch.int64).reshape(
            len(items), -1
        )
        extent = [int(n) for n in sizes.amax(dim=0)]
        same = bool((sizes == sizes[:1]).all())
        values = torch.stack([i.values if same else _pad(i.values, extent) for i in items])
        valid = None
        if any(i.valid is not None for i in items):
            masks = [
                torch.ones(i.values.shape[1:], dtype=torch.bool) if i.valid is None else i.valid
                for i in items
            ]
            valid = torch.stack([_pad(m, extent[len(extent) - m.ndim :]) for m in masks])
        named = all(i.subject is not None for i in items)
        subjects = tuple(str(i.subject) for i in items) if named else None
        return ModalityInput(values, index, sizes, valid, subjects)


@dataclass(frozen=True)
class Target:
    """The labels of those samples that have them: values (k, ...), index (k) the sample of each row.

    Of labels that are lists, values are (k, longest, ...), zero beyond the first `sizes` (k) of each row.
    """

    values: Shaped[Tensor, "k ..."]
    index: Int[Tensor, " k"]
    sizes: Int[Tensor, " k"] | None = None

    def rows(self) -> tuple[Shaped[Tensor, ...], ...]:
        """Return the label of each row, without padding."""
        if self.sizes is None:
            return tuple(self.values)
        return tuple(row[:size] for row, size in zip(self.values, self.sizes.tolist(), strict=True))


@dataclass(frozen=True)
class Batch:
    """What a datamodule yields and a model reads; the only wire format.

    `inputs` holds a key for each modality that at least one sample has; `source` names the data set of each
    sample where several are mixed.
    """

    ids: tuple[str, ...]
    inputs: Mapping[str, ModalityInput] = field(default_factory=dict)
    targets: Mapping[str, Target] = field(default_factory=dict)
    source: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:  # noqa: FBT001, FBT002 torch's word
        """Copy with values on `device`; indices, sizes and masks stay on the host."""
        inputs = {
            m: dataclasses.replace(i, values=i.values.to(device, non_blocking=non_blocking))
            for m, i in self.inputs.items()
        }
        targets = {
            k: dataclasses.replace(t, values=t.values.to(device, non_blocking=non_blocking))
            for k, t in self.targets.items()
        }
        return dataclasses.replace(self, inputs=inputs, targets=targets)

    def pin_memory(self) -> Batch:
        """Copy with values in page-locked memory (DataLoader calls this)."""
        inputs = {m: dataclasses.replace(i, values=i.values.pin_memory()) for m, i in self.inputs.items()}
        targets = {k: dataclasses.replace(t, values=t.values.pin_memory()) for k, t in self.targets.items()}
        return dataclasses.replace(self, inputs=inputs, targets=targets)

    def select(self, modalities: list[str] | tuple[str, ...]) -> Batch:
        """Copy that keeps only the named modalities (samples stay, even those left without any)."""
        return dataclasses.replace(self, inputs={m: i for m, i in self.inputs.items() if m in modalities})

    def validate(self) -> Batch:
        """Raise ShapeError where rows, indices, sizes and masks disagree; return self."""
        size = len(self.ids)
        if len(set(self.ids)) != size:
            raise ShapeError.at(
                "batch.ids", "an id twice", "each sample once", "Mend the sampler or the ids."
            )
        for name, part in self.inputs.items():
            where = f"batch.inputs.{name}"
            _check_index(where, part.index, len(part), size, repeats=True)
            _check_finite(where, part.values)
            if part.sizes.shape != (len(part), part.values.ndim - 1):
                expected = f"({len(part)}, {part.values.ndim - 1})"
                raise ShapeError.at(where, f"sizes {tuple(part.sizes.shape)}", expected, "Use collate().")
            if part.subjects is not None and len(part.subjects) != len(part):
                found = f"{len(part.subjects)} subjects for {len(part)} rows"
                raise ShapeError.at(where, found, "one each", "Use collate().")
        for name, target in self.targets.items():
            _check_index(f"batch.targets.{name}", target.index, target.values.shape[0], size)
            if target.sizes is not None and target.sizes.shape != target.index.shape:
                found, expected = f"sizes {tuple(target.sizes.shape)}", f"({len(target.index)},)"
                raise ShapeError.at(f"batch.targets.{name}", found, expected, "Use collate().")
        return self

    def __repr__(self) -> str:
        """Show shapes and how many samples have each modality and label."""
        inputs = ", ".join(f"{m} {_shape(i.values)}" for m, i in self.inputs.items())
        targets = ", ".join(f"{k} {_shape(t.values)}" for k, t in self.targets.items())
        return f"Batch({len(self)} samples: {inputs or 'nothing'} | targets: {targets or 'none'})"


@dataclass(frozen=True)
class TokenSequence:
    """What an adapter emits and a head reads.

    Shape: tokens (k n d), rows right-padded or with holes; valid (k n) host mask, True = real; index (k)
    host, the sample of each row. grids: per row the grid (rows, cols), (frames, joints, persons), … that
    the tokens after the `num_prefix` leading ones (CLS) lie on, row-major, or None. biases: additive
    attention logits (1 or k, h, n, n); none = (), one for all layers, or one a layer. levels: feature maps
    (k c h w) of the adapter's own backbone, shallowest first, where a decoder reads those. content: the
    tokens behind the prefix before their positional terms, where the adapter needs it to hide tokens. parts:
    of a joint pass, the sequence of each modality by itself, as it left the trunk.
    """

    tokens: Float[Tensor, "k n d"]
    valid: Bool[Tensor, "k n"]
    index: Int[Tensor, " k"]
    modality: str
    grids: tuple[tuple[int, ...], ...] | None = None
    num_prefix: int = 0
    biases: tuple[Float[Tensor, "_ h n n"], ...] = ()
    levels: tuple[Float[Tensor, "k _ _ _"], ...] = ()
    content: Float[Tensor, "k _ d"] | None = None
    parts: tuple[TokenSequence, ...] = ()

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.tokens.shape[0]

    def mask(self) -> Bool[Tensor, "k n"]:
        """Return `valid` on the tokens' device."""
        return self.valid.to(self.tokens.device, non_blocking=True)


@dataclass(frozen=True)
class FeatureMap:
    """What a decoder gives and a dense head reads: values (k c h w), the sample of each row, and the height
    and width in pixels of the images."""

    values: Float[Tensor, "k c h w"]
    index: Int[Tensor, " k"]
    size: tuple[int, int]


class PredictionKind(str, Enum):
    """What a head gives, and what an objective or a metric reads."""

    VECTORS = "vectors"
    """(k, e) unit vectors"""
    FEATURES = "features"
    """(k, e) vectors of any length"""
    CLASSES = "classes"
    """(k, classes) logits, of which one is right"""
    LABELS = "labels"
    """(k, labels) logits, each a question of its own"""
    CHOICES = "choices"
    """(k, 1) logits, one a row; the rows of one sample are the answers to choose from, in their order"""
    NUMBERS = "numbers"
    """(k, n) real numbers, in the units of the label"""
    BOXES = "boxes"
    """(k, 4) corners x1, y1, x2, y2 as shares of the picture's width and height, in any order"""
    TOKENS = "tokens"
    """(q, d) vectors of hidden tokens, each to be found among the teacher's (n, d)"""
    DENSE = "dense"
    """(k, channels, H, W) raw outputs at the resolution of the image the model was given; `DenseKind` says
    what the label beside them is"""
    BOXES_3D = "boxes_3d"
    """(k, q, 11) boxes around a vehicle: x y z (middle, m), length, width, height (m), yaw (rad), velocity x
    and y (m/s), score, class"""
    GROUND_MAP = "ground_map"
    """(k, classes, H, W) logits of the ground seen from above, each class a question of its own"""
    VOXELS = "voxels"
    """(k, classes, z, y, x) logits of what fills each voxel"""


class NumericKind(str, Enum):
    """What a label of numbers is; the prediction beside it is of the kind of the same name.

    `DataInfo.labels[target]` names the numbers.
    """

    NUMBERS = "numbers"
    """label (n) float, in the units of the data"""
    BOXES = "boxes"
    """label (4) float: the corners x1 < x2, y1 < y2 of a box in the picture as the model is given it, as
    shares of its width and height, from the upper left"""


IGNORE = 255
"""Value of pixels and voxels without a label, in every label but depth (where 0 means invalid)."""


class DenseKind(str, Enum):
    """What a dense label is, and so what the channels of its prediction mean.

    Shape: a label covers the image the model was given, pixel by pixel, so within a batch all have one size.
    `DataInfo.labels[target]` names the channels of the prediction (one a class, or the three axes).
    """

    CLASSES = "classes"
    """label (H, W) int64 class, 255 ignored; prediction: one logit a class"""
    SALIENCY = "saliency"
    """label (H, W) int64, 1 salient, 0 not, 255 ignored; prediction: two logits (background, salient)"""
    NORMALS = "normals"
    """label (3, H, W) float unit vectors, x right, y up, z towards the camera, 255 in all three where
    ignored; prediction: three numbers, scaled to length one where they are used"""
    EDGE = "edge"
    """label (1, H, W) float in 0 … 1, 255 ignored; prediction: one logit"""
    DEPTH = "depth"
    """label (1, H, W) float metres along the optical axis, 0 (or not finite) = not measured; prediction:
    metres"""


class SceneKind(str, Enum):
    """What a label of the scene around a vehicle is; the prediction beside it has the kind of the same name.

    `DataInfo.labels[target]` names the classes. Axes are [y, x] with the vehicle in the middle.
    """

    BOXES_3D = "boxes_3d"
    """a list (n, 10) float: x y z (middle, m), length, width, height (m), yaw (rad), velocity x y (m/s, nan
    where not known), class"""
    GROUND_MAP = "ground_map"
    """label (classes, H, W) float, 1 where a class holds, else 0; classes may overlap"""
    VOXELS = "voxels"
    """label (z, y, x) int64 class, 0 free, 255 not known"""


def lesson_name(teacher: str, kind: PredictionKind, pass_name: str) -> str:
    """Name the label of a batch that holds what a teacher gives for one of its passes."""
    return f"{teacher}/{kind.value}/{pass_name}"


@dataclass(frozen=True)
class Prediction:
    """What a head gives for one pass: values (k, ...) and the sample of each row; `scale` and `offset` are a
    contrastive head's. `spread` is a regression head's: the standard deviation (unit of the label) of each of
    the n numbers, in which losses count differences; None: they count them in the unit of the label."""

    values: Float[Tensor, "k ..."]
    index: Int[Tensor, " k"]
    scale: Float[Tensor, ""] | None = None
    offset: Float[Tensor, ""] | None = None
    spread: Float[Tensor, " n"] | None = None


@dataclass(frozen=True)
class TokenPrediction(Prediction):
    """What a denoising head gives for one modality of a pass: values (q d), what it makes of each hidden
    token, and the sample of each; keys (n d), what the teacher makes of every token, and on the host which of
    them each hidden token is."""

    keys: Float[Tensor, "n d"] = field(kw_only=True)
    own: Int[Tensor, " q"] = field(kw_only=True)


@dataclass(frozen=True)
class ModelOutput:
    """The model's answer: `predictions[task][pass]`; a pass is `image`, or `image+text` for a joint
    sequence."""

    predictions: Mapping[str, Mapping[str, Prediction]]
    aux: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    stats: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation (unit of the label) of each number of a label, over `count` samples."""

    count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def merge(self, other: Moments) -> Moments:
        """Return those of both parts of the data together.

        Math: σ² = Σ n_i (σ_i² + (μ_i - μ)²) / Σ n_i over the two parts i.
        """
        whole = self.count + other.count
        a, b = self.count / whole, other.count / whole
        mean = tuple(a * x + b * y for x, y in zip(self.mean, other.mean, strict=True))
        squares = (
            tuple(s**2 + (x - m) ** 2 for s, x, m in zip(p.std, p.mean, mean, strict=True))
            for p in (self, other)
        )
        std = tuple((a * x + b * y) ** 0.5 for x, y in zip(*squares, strict=True))
        return Moments(whole, mean, std)


@dataclass(frozen=True)
class DataInfo:
    """What a data set says of itself before a model is built.

    labels: target name -> class names in index order (of a dense target: the names of the channels of its
    prediction, of one of numbers: what they are called); dense: the targets that label every pixel, and what
    they are; numeric: the targets that are numbers, and what they are; subjects: fMRI subject -> number of
    voxels; modalities: the input names it yields; counts: split -> number of samples;
    moments: of targets that are plain numbers, their mean and spread over the training split;
    several: the modalities of which a sample may have several entries -> the largest number of them;
    scene: the targets that label the scene around a vehicle, and what they are; class_counts: target -> how
    often each class, by name, stands in the labels to train on, where that is known.
    """

    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    subjects: Mapping[str, int] = field(default_factory=dict)
    modalities: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    dense: Mapping[str, DenseKind] = field(default_factory=dict)
    numeric: Mapping[str, NumericKind] = field(default_factory=dict)
    several: Mapping[str, int] = field(default_factory=dict)
    scene: Mapping[str, SceneKind] = field(default_factory=dict)
    moments: Mapping[str, Moments] = field(default_factory=dict)
    class_counts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def _pad(values: Tensor, extent: Sequence[int]) -> Tensor:
    if list(values.shape) == list(extent):
        return values
    padded = values.new_zeros(list(extent))
    padded[tuple(slice(n) for n in values.shape)] = values
    return padded


def _shape(values: Tensor) -> str:
    return f"{tuple(values.shape)} {str(values.dtype).removeprefix('torch.')}"


def _check_finite(where: str, values: Tensor) -> None:
    # NaN and infinity survive a sum, which is one pass without temporaries; one that overflows is looked at.
    if not values.is_floating_point() or bool(torch.isfinite(values.sum())):
        return
    if not bool(torch.isfinite(values).all()):
        raise ShapeError.at(where, "NaN or infinity", "finite values", "Mend or drop the sample.")


def entry_of_row(index: Int[Tensor, " k"]) -> Int[Tensor, " k"]:
    """Return which entry of its sample each row is, counted from 0; `index` ascending, as in a batch."""
    return torch.arange(len(index)) - torch.searchsorted(index, index)


def has_several(index: Int[Tensor, " k"]) -> bool:
    """Say whether some sample has several rows; `index` ascending, as in a batch."""
    return bool((index[1:] == index[:-1]).any())


def _check_index(where: str, index: Tensor, rows: int, size: int, *, repeats: bool = False) -> None:
    if index.shape != (rows,):
        raise ShapeError.at(where, f"index {tuple(index.shape)}", f"({rows},)", "Use collate().")
    least = 0 if repeats else 1
    falling = bool((index.diff() < least).any())
    if rows and (int(index.min()) < 0 or int(index.max()) >= size or falling):
        raise ShapeError.at(
            where, f"index {index.tolist()[:8]}", f"ascending in 0..{size - 1}", "Use collate()."
        )
