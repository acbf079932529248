"""ONE-PEACE (Apache-2.0), pretraining: masked encoder and decoder passes, both losses, every gradient norm.

Losses and gradients come from the model's own forward pass, with the file's masks in place of drawn ones. The
reference's ways are all on: decoder that attends to padding, positional convolution over visible frames moved
together, keys that do not learn, and an audio student taught by the joint pass.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmzoo.batch import Batch, ModelOutput, TokenSequence
from mmzoo.layers.contrast import Keys
from mmzoo.modalities.audio import HiddenFrames
from mmzoo.modalities.base import ModalityAdapter
from mmzoo.models.denoising import DenoisingHead
from mmzoo.models.masked import Students, draw_students
from mmzoo.models.multimodal import HeadSpec, MultimodalModel
from mmzoo.models.onepeace.decoder import decoder_from_onepeace, decoder_options_of, decoder_to_onepeace
from mmzoo.models.onepeace.interop import to_onepeace
from mmzoo.objectives.contrast import InfoNce
from mmzoo.objectives.denoise import DenoisingContrast
from mmzoo.state import LossState
from mmzoo.trunk.packing import pack, unpack
from mmzoo.trunk.trunk import Trunk
from tests.parity.families.onepeace import config_of, inputs, on_real
from tests.parity.golden import Golden, Row

HIDDEN, LOSS, GRADIENT = 1e-4, 1e-5, 1e-4
TASK = "denoise"


@dataclass(frozen=True)
class Stage:
    """A stage of pretraining: the reference's name of the joint pass, the passes, who teaches them."""

    joint: str
    modality: str
    passes: tuple[str, ...]
    contrast: str
    teachers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    still: tuple[str, ...] = ()
    """passes that the reference runs without gradient"""

    @property
    def together(self) -> str:
        """Our name of the joint pass."""
        return f"text+{self.modality}"

    def theirs(self, name: str) -> str:
        """Return the reference's name of a pass."""
        return self.joint if name == self.together else name


STAGES = (
    Stage("vl", "image", ("text", "image", "text+image"), "itc"),
    Stage("al", "audio", ("audio", "text+audio"), "atc", {"audio": "text+audio"}, ("text",)),
)


def rows(golden: Golden, model: MultimodalModel) -> Iterator[Row]:
    """Add the decoder to the encoder's model and yield what each stage of the file holds."""
    for stage in STAGES:
        if stage.joint in golden.record.get("losses", {}):
            whole = build(golden, model, stage)
            batch = inputs(golden, whole)
            yield from _layers(golden, whole, batch, stage)
            yield from _losses(golden, whole, batch, stage)


def outputs(golden: Golden) -> set[str]:
    """Return the masked passes' tensors, the losses and the gradient norms."""
    names = {k for k in golden.tensors if k.startswith("mask_")}
    for stage in STAGES:
        losses = golden.record.get("losses", {}).get(stage.joint, {})
        names |= {f"loss.{stage.joint}.{k}" for k in losses if k.endswith(("loss", "_ncorrect"))}
        gradients = golden.record.get("grad_l2", {}).get(stage.joint, {})
        without = golden.record.get("params_without_grad", {}).get(stage.joint, [])
        names |= {f"grad.{stage.joint}.{k}" for k in (*gradients, *without)}
    return names


def build(golden: Golden, model: MultimodalModel, stage: Stage) -> MultimodalModel:
    """Return the model with the decoder of the file, the reference's ways on."""
    config, modalities = config_of(golden), dict(model.config.modalities)
    if "audio" in modalities:
        modalities["audio"] = dataclasses.replace(modalities["audio"], hidden_frames=HiddenFrames.COMPACT)
    state = golden.under("sd.")
    head = decoder_options_of(
        {k: tuple(v.shape) for k, v in state.items()},
        num_heads=int(config["dec_heads"]),
        teachers=dict(stage.teachers),
    )
    heads = {"align": model.config.heads["align"], TASK: HeadSpec(head=head, passes=list(stage.passes))}
    made = MultimodalModel(dataclasses.replace(model.config, modalities=modalities, heads=heads))
    decoder = {f"heads.{TASK}.{k}": v for k, v in decoder_from_onepeace(state).items()}
    weights = {**model.state_dict(), **decoder}
    made.load_state_dict({k: weights[k] for k in made.state_dict()})
    text = made.adapter(
        "text"
    )  # the file's vocabulary has no tokenizer to ask for words, its masks are given
    text.maskable = types.MethodType(ModalityAdapter.maskable, text)
    return made.eval()


def _layers(golden: Golden, model: MultimodalModel, batch: Batch, stage: Stage) -> Iterator[Row]:
    head = model.heads[TASK]
    assert isinstance(head, DenoisingHead)
    students = _students(golden, model, batch, stage)
    hidden = students.hidden[TASK]
    with torch.no_grad():
        ours = {p: students.groups[f"{TASK}:{p}"] for p in stage.passes}
        layers, out = _run(model.trunk, ours)
        filled = {p: [head.filled(s, hidden[p][s.modality]) for s in out[p]] for p in stage.passes}
        inner, decoded = _run(head.trunk, filled)
    for name in stage.passes:
        prefix = f"mask_{stage.theirs(name)}."
        for key, expected in golden.under(prefix).items():
            kind, _, what = key.partition("_")
            layer = int(what.removeprefix("layer")) if kind in ("enc", "dec") else 0
            if kind == "enc":
                found = _moved_together(layers[layer][name], expected)
            elif kind == "dec":
                found = torch.cat([s.tokens for s in inner[layer][name]], 1)
            else:
                s = next(s for s in decoded[name] if s.modality == what)
                found = head.mask_heads[s.modality](s.tokens)
            yield Row(prefix + key, found, expected, HIDDEN)


def _run(
    trunk: Trunk, passes: Mapping[str, Any]
) -> tuple[list[dict[str, list[TokenSequence]]], dict[str, list[TokenSequence]]]:
    """Return every layer's tokens, and the last's behind the final norm, of every pass."""
    states: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda _, __, out: states.append(out[0])) for b in trunk.blocks]
    groups = list(passes.values())
    out = trunk(groups)
    for hook in hooks:
        hook.remove()
    packed = pack(groups, trunk.modalities)
    layers = [dict(zip(passes, unpack(x, packed, groups), strict=True)) for x in states]
    return layers, dict(zip(passes, out.groups, strict=True))


def _moved_together(sequences: list[TokenSequence], expected: Tensor) -> Tensor:
    """Return visible tokens as the reference keeps them, each modality's moved to the left."""
    parts: list[Tensor] = []
    valid: list[Tensor] = []
    for s in sequences:
        counts = s.valid.sum(1)
        columns = torch.argsort((~s.valid).to(torch.uint8), dim=1, stable=True)[:, : int(counts.max())]
        parts.append(s.tokens.gather(1, columns[..., None].expand(-1, -1, s.tokens.shape[2])))
        valid.append(torch.arange(columns.shape[1]) < counts[:, None])
    return on_real(torch.cat(parts, 1), torch.cat(valid, 1), expected)


def _students(golden: Golden, model: MultimodalModel, batch: Batch, stage: Stage) -> Students:
    """Return the file's hidden passes; its two ways to say what is hidden must agree."""
    head, adapters = model.heads[TASK], {m: model.adapter(m) for m in ("text", stage.modality)}
    assert isinstance(head, DenoisingHead)
    with torch.no_grad():
        embedded = {m: adapter(batch.inputs[m]) for m, adapter in adapters.items()}
        hidden = _hidden(golden, stage)
        for name, parts in hidden.items():
            for m, own in parts.items():
                kept = golden.tensors[f"in.{_input(stage, name, m)}_preserve_ids"]
                visible = [row.nonzero()[:, 0].tolist() for row in embedded[m].valid & ~own]
                assert visible == [[i for i in row if i >= 0] for row in kept.tolist()]
        model.heads[TASK].draw = lambda what, generator: hidden  # pyright: ignore[reportAttributeAccessIssue]
        return draw_students({TASK: head}, adapters, embedded, batch, torch.Generator())


def _hidden(golden: Golden, stage: Stage) -> dict[str, dict[str, Tensor]]:
    return {
        name: {m: golden.tensors[f"in.{_input(stage, name, m)}_mask_indices"].bool() for m in name.split("+")}
        for name in stage.passes
    }


def _input(stage: Stage, name: str, modality: str) -> str:
    return f"{stage.joint}_{modality}" if "+" in name else modality


def _losses(golden: Golden, model: MultimodalModel, batch: Batch, stage: Stage) -> Iterator[Row]:
    expected = golden.record["losses"][stage.joint]
    model.zero_grad(set_to_none=True)
    output = model(batch)
    align, denoise = _states(output, batch, stage, expected["weights"])
    total = align.mean() + denoise.mean()
    total.backward()
    found = {f"{stage.contrast}_loss": align.mean(), "loss": total}
    for part, state in denoise.parts.items():
        name, _, modality = part.partition("/")
        found[f"dcl_{_input(stage, name, modality or name)}_loss"] = state.mean()
    for key, value in found.items():
        wanted = torch.tensor(expected[key])
        yield Row(f"loss.{stage.joint}.{key}", value.detach(), wanted, LOSS, relative=True)
    vectors = {p: x.values.detach() for p, x in output.predictions["align"].items()}
    for key in (k for k in expected if k.endswith("_ncorrect")):
        left, right = ({"t": "text"}.get(letter, stage.modality) for letter in key[:3].split("2"))
        best = (vectors[left] @ vectors[right].T).argmax(1)
        hits = (best == torch.arange(len(best))).sum().float()
        yield Row(f"loss.{stage.joint}.{key}", hits, torch.tensor(expected[key]), 0.0)
    yield from _gradients(golden, model, stage)


def _states(
    output: ModelOutput, batch: Batch, stage: Stage, weights: Mapping[str, float]
) -> tuple[LossState, LossState]:
    vectors = {
        p: dataclasses.replace(x, values=x.values.detach()) if p in stage.still else x
        for p, x in output.predictions["align"].items()
    }
    contrast = InfoNce.Config(pairs=[(stage.modality, "text")], keys=Keys.FIXED).build()
    parts = {p: p for p in stage.passes if "+" not in p}
    parts |= {f"{stage.together}/{m}": f"{stage.joint}_{m}" for m in stage.together.split("+")}
    denoising = DenoisingContrast.Config(
        weights={ours: weights[f"dcl_{theirs}_alpha"] for ours, theirs in parts.items()},
        scale=weights["dcl_logit_scale"],
        label_smoothing=weights["label_smoothing"],
    ).build()
    return contrast(vectors, batch, ""), denoising(output.predictions[TASK], batch, "")


def _gradients(golden: Golden, model: MultimodalModel, stage: Stage) -> Iterator[Row]:
    """Yield the norm of every parameter's gradient under the reference's name; zero where it has none."""
    prefix = f"heads.{TASK}."
    own: dict[str, Tensor] = {}
    decoder: dict[str, Tensor] = {}
    for name, p in model.named_parameters():
        grad = torch.zeros_like(p) if p.grad is None else p.grad
        if name.startswith(prefix):
            decoder[name.removeprefix(prefix)] = grad
        else:
            own[name] = grad
    norms = {k: g.norm() for k, g in {**to_onepeace(own), **decoder_to_onepeace(decoder)}.items()}
    for key, value in golden.record["grad_l2"][stage.joint].items():
        yield Row(f"grad.{stage.joint}.{key}", norms[key], torch.tensor(value), GRADIENT, relative=True)
    for key in golden.record["params_without_grad"][stage.joint]:
        yield Row(f"grad.{stage.joint}.{key}", norms.get(key, torch.zeros(())), torch.zeros(()), 0.0)
