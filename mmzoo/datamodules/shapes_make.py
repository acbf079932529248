"""Writes pictures of coloured shapes with sentences and boxes, or questions and answers, to try readers on.

A sentence speaks of one shape of the picture: "the red circle", or where that is not enough of where it lies:
"the red circle left of the blue square", "the upper red circle". The others in the picture are there to be
mistaken for it. Answers are those of ten people who err now and then, scored as VQAv2 scores them.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmzoo.datamodules.new_folder import into_new_folder
from mmzoo.errors import ConfigError

MIN_SAMPLES = 8
SIZE_PX = 64
"""Side of a picture."""
SHAPES = ("circle", "square", "triangle")
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (245, 150, 30),
    "green": (40, 160, 70),
    "blue": (40, 80, 200),
}
MISTAKEN = {"red": "orange", "orange": "red", "green": "blue", "blue": "green"}
"""What people who err say instead."""
SIDES_PX = (14, 28)
"""Least and largest side of a shape."""
COUNTS = (1, 3)
"""Fewest and most shapes in a picture."""
PEOPLE, ERR_PROB = 10, 0.1
RELATIONS = ("left of", "right of", "above", "below")
ENDS = ("left", "right", "upper", "lower")


@dataclass(frozen=True)
class Shape:
    """One shape: the upper left corner and side of the square it fills (pixels)."""

    kind: str
    colour: str
    left: int
    top: int
    side: int

    @property
    def name(self) -> str:
        """Return its colour and shape."""
        return f"{self.colour} {self.kind}"

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Return its corners x1, y1, x2, y2 (pixels)."""
        return self.left, self.top, self.left + self.side, self.top + self.side

    @property
    def middle(self) -> tuple[float, float]:
        """Return its middle (pixels)."""
        return self.left + self.side / 2, self.top + self.side / 2


@into_new_folder
def write_grounding(folder: Path, samples: int, *, seed: int = 0) -> str:
    """Write manifest.csv: picture, sentence, and the box x1, y1, x2, y2 of what it speaks of (pixels)."""
    rows: list[dict[str, object]] = []
    for name, split, rng in _rows(folder, samples, seed):
        shapes, sentences = [], []
        while not sentences:
            shapes = draw_shapes(rng)
            sentences = [(text, shape) for shape in shapes for text in sentences_of(shape, shapes)]
        text, shape = sentences[int(rng.integers(len(sentences)))]
        file = _save(folder, name, shapes, rng)
        corners = dict(zip(("x1", "y1", "x2", "y2"), shape.box, strict=True))
        rows.append({"id": name, "image": file, "text": text, **corners, "split": split})
    _write(folder, rows)
    return f"{len(rows)} rows in manifest.csv: a picture, a sentence and the box of what it speaks of"


@into_new_folder
def write_vqa(folder: Path, samples: int, *, seed: int = 0) -> str:
    """Write manifest.csv: picture, question, and answers with their scores."""
    rows: list[dict[str, object]] = []
    for name, split, rng in _rows(folder, samples, seed):
        shapes = draw_shapes(rng)
        question, answer, other = _ask(shapes, rng)
        said = Counter(other if rng.random() < ERR_PROB else answer for _ in range(PEOPLE))
        answers = "|".join(f"{word}:{min(1.0, count / 3):.3g}" for word, count in said.most_common())
        file = _save(folder, name, shapes, rng)
        rows.append({"id": name, "image": file, "question": question, "answers": answers, "split": split})
    _write(folder, rows)
    return f"{len(rows)} rows in manifest.csv: a picture, a question and its answers with scores"


def draw_shapes(rng: np.random.Generator) -> list[Shape]:
    """Place shapes that do not touch; the second often looks like the first."""
    shapes: list[Shape] = []
    wanted = int(rng.integers(COUNTS[0], COUNTS[1] + 1))
    while len(shapes) < wanted:
        side = int(rng.integers(SIDES_PX[0], SIDES_PX[1] + 1))
        left, top = (int(x) for x in rng.integers(0, SIZE_PX - side + 1, 2))
        kind, colour = SHAPES[rng.integers(len(SHAPES))], tuple(COLOURS)[rng.integers(len(COLOURS))]
        if len(shapes) == 1 and rng.random() < 0.5:
            kind, colour = shapes[0].kind, shapes[0].colour
        made = Shape(kind, colour, left, top, side)
        if not any(_touch(made, other) for other in shapes):
            shapes.append(made)
        elif rng.random() < 0.02:
            shapes.clear()  # no room left
    return shapes


def sentences_of(shape: Shape, shapes: Sequence[Shape]) -> list[str]:
    """Return the sentences that speak of this shape and of no other in the picture."""
    alike = [other for other in shapes if other.name == shape.name]
    if len(alike) == 1:
        return [f"the {shape.name}"]
    found = [
        f"the {end} {shape.name}"
        for end in ENDS
        if all(other is shape or _is_past(end, shape, other) for other in alike)
    ]
    for anchor in shapes:
        if sum(other.name == anchor.name for other in shapes) > 1:
            continue
        for relation, end in zip(RELATIONS, ENDS, strict=True):
            if [other for other in alike if _is_past(end, other, anchor)] == [shape]:
                found.append(f"the {shape.name} {relation} the {anchor.name}")
    return found


def paint(shapes: Sequence[Shape], rng: np.random.Generator) -> np.ndarray:
    """Return the picture (h w 3), 8-bit, on a light and slightly noisy ground."""
    from PIL import Image, ImageDraw

    ground = 225 + rng.normal(0, 6, (SIZE_PX, SIZE_PX, 3))
    picture = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    brush = ImageDraw.Draw(picture)
    for shape in shapes:
        x1, y1, x2, y2 = shape.box
        corners, colour = (x1, y1, x2 - 1, y2 - 1), COLOURS[shape.colour]
        if shape.kind == "circle":
            brush.ellipse(corners, fill=colour)
        elif shape.kind == "square":
            brush.rectangle(corners, fill=colour)
        else:
            brush.polygon([(x1, y2 - 1), (x2 - 1, y2 - 1), ((x1 + x2 - 1) / 2, y1)], fill=colour)
    return np.asarray(picture)


def _ask(shapes: Sequence[Shape], rng: np.random.Generator) -> tuple[str, str, str]:
    """Return a question, its answer, and what people who err say."""
    kinds = Counter(shape.kind for shape in shapes)
    single = [shape for shape in shapes if kinds[shape.kind] == 1]
    if not single or rng.random() < 0.3:
        return "how many shapes are there?", str(len(shapes)), str(len(shapes) + 1)
    shape = single[int(rng.integers(len(single)))]
    return f"what colour is the {shape.kind}?", shape.colour, MISTAKEN[shape.colour]


def _is_past(end: str, shape: Shape, other: Shape) -> bool:
    """Say whether a shape's middle lies clearly past another's towards an end of the picture."""
    axis = 0 if end in ("left", "right") else 1
    sign = 1 if end in ("right", "lower") else -1
    return sign * (shape.middle[axis] - other.middle[axis]) > SIDES_PX[0] / 2


def _touch(a: Shape, b: Shape) -> bool:
    ax1, ay1, ax2, ay2 = a.box
    bx1, by1, bx2, by2 = b.box
    return ax1 <= bx2 and bx1 <= ax2 and ay1 <= by2 and by1 <= ay2


def _rows(folder: Path, samples: int, seed: int) -> Iterator[tuple[str, str, np.random.Generator]]:
    """Make the folder, then yield name, split and generator of each row; a quarter is held out, half of it
    for the test."""
    if samples < MIN_SAMPLES:
        do = f"Ask for {MIN_SAMPLES}."
        raise ConfigError.at("data make", f"{samples} samples", f"at least {MIN_SAMPLES}", do)
    (folder / "image").mkdir(parents=True, exist_ok=True)
    held = max(1, samples // 8)
    for number in range(samples):
        split = "test" if number >= samples - held else "val" if number >= samples - 2 * held else "train"
        yield f"{number:06d}", split, np.random.default_rng([seed, number])


def _save(folder: Path, name: str, shapes: Sequence[Shape], rng: np.random.Generator) -> str:
    from PIL import Image

    file = f"image/{name}.png"
    Image.fromarray(paint(shapes, rng)).save(folder / file)
    return file


def _write(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
