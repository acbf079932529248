"""ONE-PEACE (Apache-2.0): adapters, every layer, outputs, projections, similarities, loading, heads, losses.

The model is built from the weights' shapes (`options_of`), as a user's would be; the json adds only what
weights do not tell: the grid at run time. What denoising pretraining adds is compared by
`onepeace_pretraining`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mmzoo.batch import Batch, ModalityInput, TokenSequence
from mmzoo.checkpoints.loading import InMemory, load_weights, require_whole
from mmzoo.heads.pooling import Pooling
from mmzoo.layers.positions import resize_grid, resize_relative_table
from mmzoo.modalities.audio import PadFrames
from mmzoo.modalities.image_preprocess import ImagePreprocess
from mmzoo.models.multimodal import HeadSpec, MultimodalModel
from mmzoo.models.onepeace.interop import from_onepeace
from mmzoo.models.onepeace.options import options_of
from mmzoo.objectives.contrast import InfoNce, Smoothing
from mmzoo.trunk.packing import pack, unpack
from tests.parity.golden import Golden, Row

PASSES = {
    "text": ["text"],
    "image": ["image"],
    "audio": ["audio"],
    "vl": ["text", "image"],
    "al": ["text", "audio"],
}
"""The reference's passes and the order of their modalities."""
HEAD_PASSES = {
    "vl": ["text", "image"],
    "al": ["text", "audio"],
    "image": ["image"],
    "audio": ["audio"],
    "text": ["text"],
}
"""What a classifier of each type reads."""
LETTERS = {"t": "text", "i": "image", "a": "audio"}
HIDDEN, VECTORS, EXACT = 1e-4, 1e-5, 1e-6
PRETRAINING = "tests.parity.families.onepeace_pretraining"
NOT_OUTPUTS = ("sd.", "in.", "mask_", "load.geo31_in")


def rows(golden: Golden) -> Iterator[Row]:
    """Build the model, run every pass, yield every output."""
    model = build(golden)
    batch = inputs(golden, model)
    yield from _adapters(golden, model, batch)
    yield from _passes(golden, model, batch)
    yield from _vectors(golden, model, batch)
    yield from _loading(golden)
    yield from _heads(golden)
    yield from _retrieval_losses(golden, model, batch)
    pretraining = _pretraining()
    if pretraining is not None:
        yield from pretraining.rows(golden, model)


def outputs(golden: Golden) -> set[str]:
    """Return every tensor that is neither weight nor input, and the losses of the json."""
    names = {k for k in golden.tensors if not k.startswith(NOT_OUTPUTS) and ".sd." not in k}
    names |= {f"loss.{k}" for k in golden.record.get("losses", {}) if k.startswith("itc")}
    pretraining = _pretraining()
    return names | (pretraining.outputs(golden) if pretraining is not None else set())


def config_of(golden: Golden) -> Mapping[str, Any]:
    """Return the sizes that the run had."""
    return golden.record.get("config") or golden.record["config_target"]


def build(golden: Golden) -> MultimodalModel:
    """Return the model of the file's weights, in evaluation mode, image tables resized as the json says."""
    state = golden.under("sd.")
    made = MultimodalModel(options(golden, state))
    require_whole(load_weights(made, InMemory(from_onepeace(state))), golden.name)
    return made.eval()


def options(golden: Golden, state: Mapping[str, Tensor]) -> MultimodalModel.Config:
    """Return the options of the model with these weights, at the json's image size."""
    config = config_of(golden)
    found = options_of({k: tuple(v.shape) for k, v in state.items()})
    modalities = dict(found.modalities)
    if "image" in modalities:
        patch, side = modalities["image"].patch_size, int(config["img_size"])
        modalities["image"] = dataclasses.replace(
            modalities["image"],
            preprocess=ImagePreprocess.Config(size=(side, side)),
            bias_grid=int(config.get("img_rel_bucket", side // patch)),
        )
    if "audio" in modalities:  # compat(onepeace): the files hold what the reference makes of padded frames
        modalities["audio"] = dataclasses.replace(modalities["audio"], pad_frames=PadFrames.REFERENCE)
    return dataclasses.replace(found, modalities=modalities)


def inputs(golden: Golden, model: MultimodalModel) -> Batch:
    """Return the file's inputs as a batch."""
    found = golden.under("in.")
    k = len(next(iter(found.values())))
    index, made = torch.arange(k), {}
    if "src_tokens" in found and "text" in model.adapters:
        ids = found["src_tokens"]
        lengths = (ids != 1).sum(1)
        made["text"] = ModalityInput(ids, index, lengths[:, None])
    for name, key in (("image", "src_images"), ("image2", "src_images_2")):
        if key in found and name in model.config.inputs:
            images = found[key]
            made[name] = ModalityInput(images, index, torch.tensor([list(images.shape[1:])] * k))
    if "src_audios" in found and "audio" in model.adapters:
        made["audio"] = ModalityInput(found["src_audios"], index, _samples(golden)[:, None])
    return Batch(tuple(str(i) for i in range(k)), made)


def forward(
    model: MultimodalModel, batch: Batch
) -> tuple[dict[str, list[TokenSequence]], list[dict[str, Tensor]]]:
    """Return the sequences of every pass, and for each block the tokens of every pass."""
    embedded = {m: model.adapter(m)(batch.inputs[m]) for m in batch.inputs if m in model.adapters}
    passes = {p: names for p, names in PASSES.items() if set(names) <= set(embedded)}
    groups = [[embedded[m] for m in names] for names in passes.values()]
    states: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda _, __, out: states.append(out[0])) for b in model.trunk.blocks]
    with torch.no_grad():
        out = model.trunk(groups)
    for hook in hooks:
        hook.remove()
    packed = pack(groups, model.trunk.modalities)
    layers = []
    for state in states:
        unpacked = unpack(state, packed, groups)
        layers.append({p: torch.cat([s.tokens for s in g], 1) for p, g in zip(passes, unpacked, strict=True)})
    return dict(zip(passes, out.groups, strict=True)), layers


def _adapters(golden: Golden, model: MultimodalModel, batch: Batch) -> Iterator[Row]:
    for name, x in batch.inputs.items():
        if name not in model.adapters:
            continue
        with torch.no_grad():
            made = model.adapter(name)(x)
        for key in sorted(k for k in golden.tensors if k.startswith(f"adapter.{name}.")):
            yield _adapter_row(key, made, golden.tensors[key])


def _adapter_row(key: str, made: TokenSequence, expected: Tensor) -> Row:
    what = key.split(".")[2]
    if what == "x":
        return Row(key, on_real(made.tokens, made.valid, expected), expected, HIDDEN)
    if what == "padding_mask":
        return Row(key, (~made.valid).to(expected.dtype), expected, 0.0)
    layer, _, head = what.removeprefix("bias").partition("_head")
    bias = made.biases[int(layer) if len(made.biases) > 1 else 0][0]
    return Row(key, bias if head == "" else bias[int(head)], expected, EXACT)


def _passes(golden: Golden, model: MultimodalModel, batch: Batch) -> Iterator[Row]:
    outputs_of, layers = forward(model, batch)
    for name, sequences in outputs_of.items():
        valid = torch.cat([s.valid for s in sequences], 1)
        for layer, tokens in enumerate(layers):
            key = f"hidden.{name}.layer{layer}"
            if key in golden.tensors:
                expected = golden.tensors[key]
                yield Row(key, on_real(tokens[name], valid, expected), expected, HIDDEN)
        for s in sequences:
            key = f"out.{name}.{s.modality}"
            if key in golden.tensors:
                expected = golden.tensors[key]
                yield Row(key, on_real(s.tokens, s.valid, expected), expected, HIDDEN)


def _vectors(golden: Golden, model: MultimodalModel, batch: Batch) -> Iterator[Row]:
    if "align" not in model.heads:
        return
    with torch.no_grad():
        made = model(batch, ["align"]).predictions["align"]
    for name, prediction in made.items():
        if f"proj.{name}" in golden.tensors:
            yield Row(f"proj.{name}", prediction.values, golden.tensors[f"proj.{name}"], VECTORS)
    scale = next(iter(made.values())).scale
    assert scale is not None
    if "logit_scale_exp" in golden.tensors:
        expected = golden.tensors["logit_scale_exp"]
        yield Row("logit_scale_exp", scale.expand_as(expected), expected, VECTORS, relative=True)
    for key in sorted(golden.under("sim.")):
        left, right = (LETTERS[letter] for letter in key.split("2"))
        expected = golden.tensors[f"sim.{key}"]
        plain = made[left].values @ made[right].values.T
        scaled = bool(expected.abs().max() > 1.0 + VECTORS)  # cosines, or logits
        yield Row(f"sim.{key}", plain * scale if scaled else plain, expected, 1e-4 if scaled else VECTORS)


def _loading(golden: Golden) -> Iterator[Row]:
    prefix = "sd.encoder_wrapper.image_adapter."
    for key, expected in sorted(golden.under("load.").items()):
        if key == "geo31_in":
            continue
        source = golden.tensors[f"{prefix}rel_pos_table_list.0.weight"]
        if key.startswith("geo31_out_bucket"):
            found = resize_relative_table(
                golden.tensors["load.geo31_in"], int(key.removeprefix("geo31_out_bucket"))
            )
        elif key.startswith("image_rel_pos_table_"):
            found = resize_relative_table(source, int(key.rpartition("_")[2].split("x")[0]))
        else:
            side = int(key.removesuffix("_runtime").rpartition("_")[2].split("x")[0])
            found = resize_grid(golden.tensors[f"{prefix}pos_embed"], side, side)
        yield Row(f"load.{key}", found, expected, VECTORS)


def _retrieval_losses(golden: Golden, model: MultimodalModel, batch: Batch) -> Iterator[Row]:
    for key, value in golden.record.get("losses", {}).items():
        if not key.startswith("itc"):
            continue
        expected = torch.tensor(float(value["loss"] if isinstance(value, Mapping) else value))
        smoothing = float(key.rpartition("_")[2]) if "smoothing" in key else 0.0
        objective = InfoNce.Config(
            pairs=[("image", "text")], label_smoothing=smoothing, smooth_over=Smoothing.OTHERS
        ).build()
        with torch.no_grad():
            predictions = model(batch, ["align"]).predictions["align"]
            found = objective(predictions, batch, "").mean()
        yield Row(f"loss.{key}", found, expected, 1e-5, relative=True)


def _heads(golden: Golden) -> Iterator[Row]:
    encoder = {k: v for k, v in golden.under("sd.").items() if k.startswith("encoder_wrapper.")}
    for name, spec in golden.record.get("heads", {}).items():
        state = {**encoder, **golden.under(f"head.{name}.sd.")}
        found = options(golden, state)
        joint = HEAD_PASSES[spec["head_type"]]
        head = dataclasses.replace(
            found.heads["classify"].head,
            num_classes=spec["num_classes"],
            pooling=Pooling.ATTENTION if spec.get("attn_pooling", True) else Pooling.CLS,
            part="image" if spec.get("use_image_features") and "image" in joint else joint[0],
            ratio=float(spec.get("head_scale_ratio", 2)),
            pooler=spec.get("use_pooler", False),
        )
        one = "+".join(joint)
        passes = [one, one.replace("image", "image2")] if spec.get("two_images", False) else [one]
        model = MultimodalModel(
            dataclasses.replace(
                found,
                views={"image2": "image"} if spec.get("two_images", False) else {},
                heads={"classify": HeadSpec(head=head, passes=passes)},
            )
        )
        report = load_weights(model, InMemory(from_onepeace(state)))
        unread = ("views.", "heads.classify.pool.norm.")  # of heads with one picture, or that pool CLS
        require_whole(report, f"{golden.name}, head {name}", optional=unread)
        model.eval()
        with torch.no_grad():
            (made,) = model(inputs(golden, model)).predictions["classify"].values()
        key = f"head.{name}.logits"
        yield Row(key, made.values, golden.tensors[key], HIDDEN)


def _pretraining() -> Any:
    return importlib.import_module(PRETRAINING) if importlib.util.find_spec(PRETRAINING) else None


def on_real(found: Tensor, valid: Tensor, expected: Tensor) -> Tensor:
    """Return `found` where tokens are real and what was expected on padding, which nothing reads."""
    if found.shape != expected.shape:
        return found
    return torch.where(valid[..., None], found, expected)


def _samples(golden: Golden) -> Tensor:
    """Return the samples of each clip: as the json says, else the fewest that give the unpadded frames."""
    given = config_of(golden).get("audio_lens")
    if given is not None:
        return torch.tensor(given)
    frames = (golden.tensors["in.audio_padding_masks"] == 0).sum(1) - 1
    return (frames - 1) * 320 + 400
