"""A step of ONE-PEACE's second stage (forward and backward) against one that embeds anew for every pass.

Run: python benchmarks/pretraining_step.py [--rows 8] [--seconds 2] [--rounds 9] [--quick] [--json]

Sizes of onepeace.md section 11: width 256, 4 blocks, 4 heads, GeGLU of 1024, raw waveform at 16 kHz through
the released extractor of 512 channels, 32 text tokens. Both sides have the same weights, masks, trunk and
loss, and freeze what the second stage freezes; gradients are compared before anything is timed.
four passes: as in the reference, each of audio, text+audio (teacher), hidden audio and hidden text+audio runs
the adapters again and goes through the trunk by itself, with the extractor written as there: conv1d and
a transposed copy around every LayerNorm. our layers: the same four passes with mmzoo's extractor. once:
mmzoo's own step. Target: >= 3x the first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import compare, finish, machine, parser
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import Batch, DataInfo, ModalityInput, Prediction, TokenSequence
from mmzoo.heads.masked import Hidden
from mmzoo.modalities.audio import WaveformExtractor
from mmzoo.models.denoising import DenoisingHead
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.objectives.contrast import InfoNce
from mmzoo.objectives.denoise import DenoisingContrast

RATE_HZ, TEXT_TOKENS = 16_000, 32
JOINT = "text+audio"
OPTIONS = {
    "modalities": {
        "text": {"type": "text", "preprocess": {"tokenizer": "bytes"}},
        "audio": {"type": "audio"},
    },
    "trunk": {"dim": 256, "depth": 4, "num_heads": 4},
    "heads": {
        "align": {"head": "contrastive", "passes": ["audio", "text"]},
        "denoise": {
            "head": {
                "type": "denoise",
                "decoder": {"dim": 128, "num_heads": 2, "ffn": {"hidden_dim": 512}},
                "joint_masks": {"text": {"type": "words", "share": 0.4}},
                "teachers": {"audio": JOINT},
            },
            "passes": ["audio", JOINT],
        },
    },
    "freeze": [
        "*",
        "~modalities.audio",
        "~trunk.ffn.audio",
        "~trunk.norm.audio",
        "~heads.align.projections.audio",
        "~heads.align.log_scale",
        "~heads.denoise",
    ],
}
LOSSES = (
    InfoNce.Config(pairs=[("audio", "text")]).build(),
    DenoisingContrast.Config(weights={JOINT: 0.5}).build(),
)


class Step:
    """A model, a batch and its masks."""

    def __init__(self, rows: int, seconds: float) -> None:
        """Make them; every clip and text has its own length."""
        torch.manual_seed(0)
        options = schema.parse(MultimodalModel.Config, OPTIONS)
        self.model = MultimodalModel(MultimodalModel.resolve(options, DataInfo())).train()
        generator = torch.Generator().manual_seed(0)
        spread = 1 - 0.2 * torch.rand(rows, generator=generator)
        spread[:1] = 1.0
        self.batch = Batch(
            tuple(str(i) for i in range(rows)),
            {
                "text": _ragged(torch.randint(3, 259, (rows, TEXT_TOKENS), generator=generator), spread),
                "audio": _ragged(torch.randn(rows, int(RATE_HZ * seconds), generator=generator), spread),
            },
        )
        what = {m: self.model.adapter(m).maskable(x, self._embed(m)) for m, x in self.batch.inputs.items()}
        self.hidden: Hidden = self.head.draw(what, generator)
        self.head.draw = lambda what, generator: self.hidden

    @property
    def head(self) -> DenoisingHead:
        """Return the denoising head."""
        head = self.model.heads["denoise"]
        if not isinstance(head, DenoisingHead):
            raise TypeError(type(head).__name__)
        return head

    def once(self) -> Tensor:
        """Return mmzoo's loss: every modality embedded once."""
        return self._loss(self.model(self.batch).predictions)

    def four_passes(self) -> Tensor:
        """Return the same loss, every pass by itself from the raw input on."""
        align = self.model.heads["align"]
        with torch.no_grad():
            text = self._run(self._embed("text"))
            teacher = self._run(self._embed("text"), self._embed("audio"))
        audio = self._run(self._embed("audio"))
        students = {
            name: self._run(*(self.model.adapter(m).hide(self._embed(m), own) for m, own in parts.items()))
            for name, parts in self.hidden.items()
        }
        aligned = {"audio": align(audio[0], "audio"), "text": align(text[0], "text")}
        return self._loss(
            {"align": aligned, "denoise": self.head.compare(students, {JOINT: teacher}, self.hidden)}
        )

    def as_reference(self) -> Tensor:
        """Return the same loss by four passes through the reference's convolutions."""
        extractor = next(m for m in self.model.modules() if isinstance(m, WaveformExtractor))
        extractor.forward = lambda waves: _transposing(extractor, waves)  # pyright: ignore[reportAttributeAccessIssue] the peer
        try:
            return self.four_passes()
        finally:
            del extractor.forward

    def timed(self, loss: Callable[[], Tensor]) -> Callable[[], None]:
        """Return forward and backward."""

        def run() -> None:
            self.model.zero_grad(set_to_none=True)
            loss().backward()

        return run

    def gradients(self, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
        """Return the gradient of every parameter that learns."""
        self.timed(loss)()
        return {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}

    def _embed(self, modality: str) -> TokenSequence:
        return self.model.embedded(modality, self.batch.inputs[modality])

    def _run(self, *sequences: TokenSequence) -> list[TokenSequence]:
        return self.model.trunk([list(sequences)]).groups[0]

    def _loss(self, predictions: dict[str, dict[str, Prediction]]) -> Tensor:
        align, denoise = LOSSES
        return (
            align(predictions["align"], self.batch, "").mean()
            + denoise(predictions["denoise"], self.batch, "").mean()
        )


def _transposing(extractor: WaveformExtractor, waves: Tensor) -> Tensor:
    x = waves[:, None]
    for conv, norm in zip(extractor.convs, extractor.norms, strict=True):
        x = F.gelu(norm(conv(x).transpose(1, 2))).transpose(1, 2)
    return x.transpose(1, 2)


def _ragged(values: Tensor, spread: Tensor) -> ModalityInput:
    lengths = (spread * values.shape[1]).long()
    values = values * (torch.arange(values.shape[1]) < lengths[:, None])
    return ModalityInput(values, torch.arange(len(values)), lengths[:, None])


def check(step: Step) -> float:
    """Return the largest relative difference of a parameter's gradient between the two."""
    ours, theirs = step.gradients(step.once), step.gradients(step.as_reference)
    if ours.keys() != theirs.keys():
        raise SystemExit("the two do not train the same parameters")
    return max(float((ours[n] - g).norm() / g.norm().clamp(min=1e-12)) for n, g in theirs.items())


def main() -> None:
    """Parse the arguments, compare, time, print."""
    line = parser(__doc__ or "")
    line.add_argument("--rows", type=int, default=8, help="samples of a batch")
    line.add_argument("--seconds", type=float, default=2.0, help="length of the longest clip")
    args = line.parse_args()
    torch.set_num_threads(args.threads)
    rows, seconds, rounds = (2, 1.0, 3) if args.quick else (args.rows, args.seconds, args.rounds)
    step = Step(rows, seconds)
    error = check(step)
    if error > 1e-4:
        raise SystemExit(f"gradients differ by {error:.1e}; no use in timing them")
    results = compare(
        {
            "four passes": step.timed(step.as_reference),
            "our layers": step.timed(step.four_passes),
            "once": step.timed(step.once),
        },
        rounds=rounds,
    )
    results[-1].extra["gradient error"] = f"{error:.1e}"
    about = {**machine(args.threads), "rows": rows, "seconds": seconds, "rounds": rounds}
    finish({"second stage, forward and backward": results}, about, as_object=args.json)


if __name__ == "__main__":
    sys.exit(main())
