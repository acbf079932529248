"""M3ViT's golden files: every block, choice and expert layer by task, predictions, stand-alone gates with
given noise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mmzoo.batch import Batch, ModalityInput
from mmzoo.models.m3vit.interop import config_of, from_m3vit
from mmzoo.models.multimodal import MultimodalModel
from mmzoo.trunk.balance import Compat, cv2
from mmzoo.trunk.moe import MoeFeedForward
from mmzoo.trunk.router import Gate, GateWeights, Noise, Routing, TopKConfig, route
from tests.parity.golden import Golden, Row

TOLERANCE = 1e-5
GATE_OUTPUT = re.compile(r"out/(?P<gate>.*(?:gate|noisy).*?)[/_](?P<what>topk_idx|topk_score|loss)")


def outputs(golden: Golden) -> set[str]:
    """Return the names of all outputs."""
    return {name for name in golden.tensors if name.startswith("out/")}


def rows(golden: Golden) -> Iterator[Row]:
    """Run all tasks in one forward, and each gate that is recorded by itself."""
    found = {**_gates(golden), **_model(golden)}
    for name in sorted(outputs(golden) & set(found)):
        expected = golden.tensors[name]
        values = found[name].reshape(expected.shape).to(expected.dtype)
        yield Row(name, values, expected, 0.0 if expected.dtype is torch.int32 else TOLERANCE)


def _model(golden: Golden) -> dict[str, Tensor]:
    record, tasks = golden.record, list(golden.record["tasks"])
    state = {k: v for k, v in golden.under("state/").items() if k.startswith(("backbone.", "decoders."))}
    options = config_of(
        state,
        tasks,
        num_heads=record["num_heads"],
        image_size=tuple(record["img_size"]),
        top_k=record["moe_top_k"],
        noisy=record["moe_gate_type"] == "noisy",
    )
    model = MultimodalModel(options)
    model.load_state_dict(from_m3vit(state, tasks), strict=True)
    model.eval()
    image = golden.tensors["in/image"]
    sizes = torch.tensor([image.shape[1:]] * len(image))
    part = ModalityInput(image, torch.arange(len(image)), sizes)
    batch = Batch(tuple(str(i) for i in range(len(image))), {"image": part})
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        seen, hooks = _watch(model)
        for task, passes in model(batch, tasks).predictions.items():
            found[f"out/{task}/pred"] = passes["image"].values
        for hook in hooks:
            hook.remove()
        depth = range(1, options.trunk.depth + 1)
        taps = model.trunk(
            [[model.adapters["image"](part)]], taps=depth, tasks={task: [0] for task in tasks}
        ).tasks
        for task in tasks:
            for n in depth:
                found[f"out/{task}/block{n - 1}"] = taps[task].taps[n][0][0].tokens
    rows_each = len(image) * taps[tasks[0]].groups[0][0].tokens.shape[1]
    for layer, (x, routing, y) in seen.items():
        for i, task in enumerate(tasks):
            own = slice(i * rows_each, (i + 1) * rows_each)
            found[f"out/{task}/moe{layer}_in"], found[f"out/{task}/moe{layer}_out"] = x[own], y[own]
            found[f"out/{task}/block{layer}_topk_idx"] = routing.experts_tk[own]
            found[f"out/{task}/block{layer}_topk_score"] = routing.weights_tk[own]
    return found


def _watch(model: MultimodalModel) -> tuple[dict[int, Any], list[Any]]:
    """Keep what goes into and comes out of every routed feed-forward, and what its router decides."""
    seen: dict[int, list[Any]] = {}
    hooks: list[Any] = []
    for layer, block in enumerate(model.trunk.blocks):
        ffn = getattr(block, "ffn", None)
        if not isinstance(ffn, MoeFeedForward):
            continue
        kept = seen.setdefault(layer, [None, None, None])

        def into(module: Any, inputs: Any, output: Any, kept: list[Any] = kept) -> None:
            kept[0], kept[1] = inputs[0], output

        def out(module: Any, inputs: Any, output: Any, kept: list[Any] = kept) -> None:
            kept[2] = output[0]

        hooks += [ffn.router.register_forward_hook(into), ffn.register_forward_hook(out)]
    return seen, hooks


def _gates(golden: Golden) -> dict[str, Tensor]:
    """Run the gates that are recorded by themselves: `out/<name>/{topk_idx,topk_score,loss}`."""
    names = {m["gate"]: name for name in outputs(golden) if (m := GATE_OUTPUT.fullmatch(name))}
    found: dict[str, Tensor] = {}
    for name, output in names.items():
        joint = output[len("out/") + len(name)]
        routing = _gate(golden, name, golden.tensors.get(f"out/{name}{joint}topk_idx"))
        found[f"out/{name}{joint}topk_idx"] = routing.experts_tk
        found[f"out/{name}{joint}topk_score"] = routing.weights_tk
        compat = Compat.NONE if _is_noisy(golden, name) else Compat.M3VIT
        found[f"out/{name}{joint}loss"] = cv2(routing, compat)
    return found


def _is_noisy(golden: Golden, name: str) -> bool:
    return "noisy" in name or (golden.record["moe_gate_type"] == "noisy")


def _gate(golden: Golden, name: str, chosen: Tensor | None) -> Routing:
    """Rebuild one gate: learned noise with weights of its own, or the constant noise of block 1's gate."""
    noisy, training = _is_noisy(golden, name), "eval" not in name
    weights = _gate_weights(golden, name, noisy=noisy)
    x, noise = _input(golden, name, "x"), _input(golden, name, "noise") if training else None
    config = TopKConfig(
        top_k=golden.record["moe_top_k"] if chosen is None else chosen.shape[1],
        weights=GateWeights.RENORMALISED if noisy else GateWeights.FULL,
        noise=Noise.LEARNED if noisy else Noise.CONSTANT,
        noise_std=float(golden.record.get("vmoe_noisy_std", 1.0)),
    )
    gate = Gate(x.shape[1], weights["w_gate"].shape[1], config)
    with torch.no_grad():
        gate.weight.copy_(weights["w_gate"].t())
        if gate.noise is not None:
            gate.noise.copy_(weights["w_noise"].t())
        return route(gate.logits(x), config, gate.noise_std(x) if training else None, noise)


def _gate_weights(golden: Golden, name: str, *, noisy: bool) -> Mapping[str, Tensor]:
    """Find `<somewhere>w_gate` (and `w_noise`): under a gate's own name if it has one, else block 1's."""
    state = {k.removeprefix("state/"): v for k, v in golden.tensors.items()}
    homes = [k.removesuffix("w_gate") for k in state if k.endswith("w_gate")]
    if noisy:
        homes = [home for home in homes if f"{home}w_noise" in state]
    own = [home for home in homes if not home.startswith("backbone.")]
    inside = [home for home in homes if home.startswith("backbone.blocks.1.mlp.gate.")]
    home = sorted((own if noisy and own else inside) or homes)[0]
    return {key: state[home + key] for key in ("w_gate", "w_noise") if home + key in state}


def _input(golden: Golden, name: str, what: str) -> Tensor:
    """Find `in/<gate>_<what>`: of this gate, else of the one it shares inputs with."""
    own = golden.tensors.get(f"in/{name}_{what}")
    if own is not None:
        return own
    stem = re.sub(r"[/_]?(?:train|eval)[/_]?", "", name)
    fits = [k for k in golden.tensors if k.startswith("in/") and k.endswith(f"_{what}") and stem in k]
    return golden.tensors[sorted(fits)[0]]
