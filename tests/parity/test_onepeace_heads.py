"""A file like the reference's retrieval model with classifiers, written by the slow computation, runs through
the runner: a relative table a layer, type embeddings, two pictures, every head, both losses.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmzoo.checkpoints.loading import load_weights
from mmzoo.heads.numbers import BoxHead
from mmzoo.heads.pooling import Pooling
from mmzoo.models.multimodal import HeadSpec, MultimodalModel
from mmzoo.models.onepeace.weights import open_onepeace
from tests.parity import slow_onepeace as slow
from tests.parity.families import onepeace
from tests.parity.golden import compare, read

DIM, HEADS, DEPTH, HIDDEN, VOCAB, SIDE = 48, 3, 3, 60, 59, 4
TEXT_BUCKETS, AUDIO_BUCKETS, CHANNELS, KERNEL, GROUPS = 8, 16, 12, 20, 8
LENGTHS, SAMPLES = [7, 4], 4000
CONFIG = {
    "dim": DIM,
    "heads": HEADS,
    "layers": DEPTH,
    "img_size": 16 * SIDE,
    "img_bucket": SIDE,
    "img_rel_bucket": SIDE,
    "batch": 2,
    "text_lens": LENGTHS,
    "audio_lens": [SAMPLES] * 2,
}


def head(kind: str, classes: int, **options: bool) -> dict[str, object]:
    plain = {"two_images": False, "use_pooler": False, "use_image_features": False, "attn_pooling": True}
    return {"head_type": kind, "num_classes": classes, "head_scale_ratio": 2, **plain, **options}


SPECS = {
    "vqa": head("vl", 11, use_pooler=True),
    "nlvr2": head("vl", 2, two_images=True),
    "grounding": head("vl", 4, use_image_features=True),
    "sound": head("audio", 9) | {"head_scale_ratio": 3},
    "cls": head("image", 5, attn_pooling=False),
}


def draw(shapes: dict[str, tuple[int, ...]], generator: torch.Generator) -> dict[str, Tensor]:
    """Move every tensor from where it starts: norms near 1, the rest of a size that keeps signals alive."""
    made: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        fan = math.prod(shape[1:]) if len(shape) > 1 else 1
        made[name] = torch.randn(shape, generator=generator) * (
            0.8 / math.sqrt(fan) if len(shape) > 1 else 0.2
        )
        if name.endswith("weight") and len(shape) == 1:
            made[name] += 1
        if "rel_pos" in name or "embedding" in name or "pos_embed" in name or name.endswith(".q"):
            made[name] = torch.randn(shape, generator=generator) * 0.5
    return made


def encoder_shapes() -> dict[str, tuple[int, ...]]:
    both = {"weight": (DIM,), "bias": (DIM,)}
    shapes: dict[str, tuple[int, ...]] = {"logit_scale": ()}
    for m in ("text", "image", "audio"):
        p = f"encoder_wrapper.{m}_adapter."
        shapes |= {f"{p}cls_embedding": (1, 1, DIM), f"{p}type_embedding": (1, 1, DIM)}
        shapes |= {f"{m}_proj.weight": (DIM, DIM), f"{m}_proj.bias": (DIM,)}
        rows = {
            "text": 2 * TEXT_BUCKETS + 2,
            "audio": 2 * AUDIO_BUCKETS + 2,
            "image": (2 * SIDE - 1) ** 2 + 3,
        }[m]
        shapes |= {f"{p}rel_pos_table_list.{i}.weight": (rows, HEADS) for i in range(DEPTH)}
        shapes |= {f"encoder_wrapper.fusion_model.{m}_layer_norm.{e}": s for e, s in both.items()}
    shapes |= {"encoder_wrapper.text_adapter.embed_tokens.weight": (VOCAB, DIM)}
    shapes |= {"encoder_wrapper.text_adapter.embed_positions.weight": (514, DIM)}
    p = "encoder_wrapper.image_adapter."
    shapes |= {f"{p}pos_embed": (SIDE * SIDE + 1, DIM), f"{p}type_embedding_2": (1, 1, DIM)}
    for i, shape in ((0, (DIM // 4, 3, 4, 4)), (3, (DIM // 4, DIM // 4, 2, 2)), (6, (DIM, DIM // 4, 2, 2))):
        shapes |= {f"{p}embed_images.{i}.weight": shape, f"{p}embed_images.{i}.bias": shape[:1]}
    shapes |= {f"{p}embed_images.{i}.layer_norm.{e}": (DIM // 4,) for i in (1, 4) for e in both}
    p = "encoder_wrapper.audio_adapter."
    shapes |= {f"{p}cls_pos_embed": (1, 1, DIM), f"{p}mask_embedding": (1, DIM)}
    for i, kernel in enumerate((10, 3, 3, 3, 3, 2, 2)):
        shapes[f"{p}embed_audios.0.conv_layers.{i}.0.weight"] = (CHANNELS, CHANNELS if i else 1, kernel)
        shapes |= {f"{p}embed_audios.0.conv_layers.{i}.2.1.{e}": (CHANNELS,) for e in both}
    shapes |= {f"{p}embed_audios.2.{e}": (CHANNELS,) for e in both}
    shapes |= {f"{p}embed_audios.3.weight": (DIM, CHANNELS), f"{p}embed_audios.3.bias": (DIM,)}
    for i in (1, 2, 3):
        shapes |= {
            f"{p}embed_positions.{i}.0.weight": (DIM, DIM // GROUPS, KERNEL),
            f"{p}embed_positions.{i}.0.bias": (DIM,),
        }
    for i in range(DEPTH):
        shapes |= layer_shapes(f"encoder_wrapper.fusion_model.layers.{i}.")
    return shapes


def layer_shapes(p: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{p}gamma_{i}": (DIM,) for i in (1, 2)}
    for name in ("self_attn_layer_norm", "final_layer_norm", "self_attn.ln"):
        shapes |= {f"{p}{name}.{e}": (DIM,) for e in ("weight", "bias")}
    shapes |= {f"{p}self_attn.{w}.weight": (DIM, DIM) for w in ("q_proj", "k_proj", "v_proj", "out_proj")}
    shapes |= {f"{p}self_attn.{w}.bias": (DIM,) for w in ("q_proj", "v_proj", "out_proj")}
    for m in ("text", "image", "audio"):
        shapes |= {f"{p}{m}_ffn.0.{w}.weight": (HIDDEN, DIM) for w in ("wi_0", "wi_1")}
        shapes |= {f"{p}{m}_ffn.2.{e}": (HIDDEN,) for e in ("weight", "bias")}
        shapes |= {f"{p}{m}_ffn.3.weight": (DIM, HIDDEN), f"{p}{m}_ffn.3.bias": (DIM,)}
    return shapes


def head_shapes(spec: dict[str, object]) -> dict[str, tuple[int, ...]]:
    width, hidden = DIM * (2 if spec["two_images"] else 1), int(spec["head_scale_ratio"]) * DIM
    shapes: dict[str, tuple[int, ...]] = {f"classify_head.norm.{e}": (DIM,) for e in ("weight", "bias")}
    if spec["attn_pooling"]:
        p = "classify_head.attn_pooling_func."
        shapes |= {f"{p}q": (1, 1, HEADS, DIM // HEADS), f"{p}k_proj.weight": (DIM, DIM)}
        shapes |= {f"{p}{w}.weight": (DIM, DIM) for w in ("v_proj", "out_proj")}
        shapes |= {f"{p}{w}.bias": (DIM,) for w in ("v_proj", "out_proj")}
    if spec["use_pooler"]:
        shapes |= {"classify_head.pooler.1.weight": (DIM, DIM), "classify_head.pooler.1.bias": (DIM,)}
    p = "classify_head.classifier."
    shapes |= {
        f"{p}0.weight": (hidden, width),
        f"{p}0.bias": (hidden,),
        f"{p}1.weight": (hidden,),
        f"{p}1.bias": (hidden,),
    }
    classes = int(spec["num_classes"])
    return shapes | {f"{p}3.weight": (classes, hidden), f"{p}3.bias": (classes,)}


def smoothed(logits: Tensor, epsilon: float) -> Tensor:
    negative, share = -logits.log_softmax(1), epsilon / (len(logits) - 1)
    return ((1 - epsilon - share) * negative.diagonal() + share * negative.sum(1)).mean()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Write the file and the json beside it."""
    generator = torch.Generator().manual_seed(5)
    state = draw(encoder_shapes(), generator)
    state["logit_scale"] = torch.tensor(math.log(1 / 0.07))
    ids = torch.randint(4, VOCAB, (2, max(LENGTHS)), generator=generator)
    ids[1, LENGTHS[1] :] = 1
    images, images_2 = (torch.randn(2, 3, 64, 64, generator=generator) for _ in range(2))
    waves = torch.randn(2, SAMPLES, generator=generator)
    tensors = {
        "in.src_tokens": ids,
        "in.src_images": images,
        "in.src_images_2": images_2,
        "in.src_audios": waves,
    }
    tensors |= {f"sd.{k}": v for k, v in state.items()}
    texts = [slow.text(state, ids[i, :n], DEPTH) for i, n in enumerate(LENGTHS)]
    pictures = [slow.image(state, x, DEPTH) for x in images]
    seconds = [slow.image(state, x, DEPTH, second=True) for x in images_2]
    sounds = [slow.audio(state, x, DEPTH) for x in waves]
    by_pass = {
        "text": [texts],
        "image": [pictures],
        "audio": [sounds],
        "vl": [texts, pictures],
        "al": [texts, sounds],
        "vl2": [texts, seconds],
    }
    finals: dict[str, list[list[Tensor]]] = {}
    for name, columns in by_pass.items():
        runs = [slow.trunk(state, list(parts), DEPTH, HEADS) for parts in zip(*columns, strict=True)]
        finals[name] = [normed for _, normed in runs]
        if name == "vl2":
            continue
        for layer in range(DEPTH):
            tensors[f"hidden.{name}.layer{layer}"] = padded([states[layer] for states, _ in runs], columns)
        for j, column in enumerate(columns):
            rows = [normed[j] for _, normed in runs]
            tensors[f"out.{name}.{column[0].modality}"] = torch.nn.utils.rnn.pad_sequence(
                rows, batch_first=True
            )
    for m, column in (("text", texts), ("image", pictures), ("audio", sounds)):
        tensors[f"adapter.{m}.x"] = torch.nn.utils.rnn.pad_sequence([t.x for t in column], batch_first=True)
        tensors[f"adapter.{m}.bias2"] = max(column, key=lambda t: len(t.x)).biases[2]
        vectors = (
            torch.stack([normed[0][0] for normed in finals[m]]) @ state[f"{m}_proj.weight"].T
            + state[f"{m}_proj.bias"]
        )
        tensors[f"proj.{m}"] = F.normalize(vectors, dim=1)
    tensors["sim.i2t"] = tensors["proj.image"] @ tensors["proj.text"].T
    logits = tensors["sim.i2t"] / 0.07
    losses = {
        f"itc{end}": float(smoothed(logits, e) + smoothed(logits.T, e)) / 2
        for end, e in (("", 0.0), ("_label_smoothing_0.1", 0.1))
    }
    for name, spec in SPECS.items():
        own = draw(head_shapes(spec), generator)
        tensors |= {f"head.{name}.sd.{k}": v for k, v in own.items()}
        passes = {
            "vl": ["vl", "vl2"] if spec["two_images"] else ["vl"],
            "audio": ["audio"],
            "image": ["image"],
        }[str(spec["head_type"])]
        part = 1 if spec["use_image_features"] else 0
        tensors[f"head.{name}.logits"] = torch.stack(
            [
                slow.classify(
                    own,
                    [finals[p][i][part] for p in passes],
                    bool(spec["attn_pooling"]),
                    bool(spec["use_pooler"]),
                )
                for i in range(2)
            ]
        )
    folder = tmp_path_factory.mktemp("golden")
    path = folder / "onepeace_made.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    record = {"config": CONFIG, "type_emb": True, "heads": SPECS, "losses": losses}
    path.with_suffix(".json").write_text(json.dumps(record))
    return path


def padded(rows: list[Tensor], columns: list[list[slow.Tokens]]) -> Tensor:
    """Pad each modality of joint rows by itself, as the reference's batches are."""
    widths = [max(len(t.x) for t in column) for column in columns]
    made = []
    for i, row in enumerate(rows):
        parts = row.split([len(column[i].x) for column in columns])
        made.append(torch.cat([F.pad(x, (0, 0, 0, w - len(x))) for x, w in zip(parts, widths, strict=True)]))
    return torch.stack(made)


def test_every_output_agrees_with_the_slow_computation(made: pathlib.Path) -> None:
    rows = compare(made)
    names = {row.name for row in rows}
    assert {row.name: row.error for row in rows if not row.passed} == {}
    assert {f"head.{name}.logits" for name in SPECS} <= names
    assert {"loss.itc", "loss.itc_label_smoothing_0.1", "adapter.audio.bias2", "hidden.vl.layer2"} <= names
    assert all(row.expected.abs().max() > 0.1 for row in rows if row.name.startswith(("head.", "hidden.")))


def test_a_grounding_file_loads_into_the_box_head(made: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Its keys are `classify_head.…`; the head's own name does not matter, and boxes are σ(logits)."""
    tensors = load_file(made)
    state = {k.removeprefix("sd."): v for k, v in tensors.items() if k.startswith("sd.")}
    own = {k.rpartition(".sd.")[2]: v for k, v in tensors.items() if k.startswith("head.grounding.sd.")}
    assert all(k.startswith("classify_head.") for k in own)
    torch.save({"model": {**state, **own}, "cfg": {}}, tmp_path / "finetune_refcoco.pt")
    weights = open_onepeace(tmp_path / "finetune_refcoco.pt")
    head = BoxHead.Config(num_classes=4, pooling=Pooling.ATTENTION, pool_heads=HEADS, part="image")
    heads = {"ground": HeadSpec(head=head, passes=["text+image"])}
    model = MultimodalModel(dataclasses.replace(weights.options(), heads=heads)).eval()
    report = load_weights(model, weights.for_model(model))
    assert not report.missing
    with torch.no_grad():
        found = model(onepeace.inputs(read(made), model)).predictions["ground"]["text+image"].values
    torch.testing.assert_close(found, tensors["head.grounding.logits"].sigmoid(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ("sd.encoder_wrapper.audio_adapter.rel_pos_table_list.1.weight", "hidden.audio.layer1"),
        ("sd.encoder_wrapper.image_adapter.type_embedding_2", "head.nlvr2.logits"),
        ("head.sound.sd.classify_head.attn_pooling_func.q", "head.sound.logits"),
    ],
)
def test_a_wrong_weight_is_seen(made: pathlib.Path, tmp_path: pathlib.Path, change: str, wrong: str) -> None:
    tensors = load_file(made)
    tensors[change] = tensors[change].flip(-1) + 0.3
    save_file(tensors, tmp_path / made.name)
    (tmp_path / made.with_suffix(".json").name).write_text(made.with_suffix(".json").read_text())
    failed = {row.name for row in compare(tmp_path / made.name) if not row.passed}
    assert wrong in failed
    assert "hidden.text.layer2" not in failed
