"""A routed feed-forward against a dense one of equal active FLOPs, forward and backward.

Run: python benchmarks/moe.py [--rounds 9] [--threads 1] [--quick] [--json]

2,048 tokens of dim 384, plain GELU networks. Dense: hidden 1,536. Routed: 8 experts of hidden 768, top-2 of a
softmax router whose time counts, load about even as at the start of training; once with products by slices,
once with grouped_mm, and in the modality-routed form (5 modalities, one expert each, hidden 1,536). Both
routed kernels are compared before anything is timed. Target: >= 0.85x of dense in float32.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from harness import compare, finish, machine, parser
from torch import Tensor, nn

from mmzoo import schema
from mmzoo.batch import TokenSequence
from mmzoo.layers.grouped_linear import GroupedKernel
from mmzoo.trunk.base import FeedForward, MixerContext
from mmzoo.trunk.feed_forward import SharedFeedForward
from mmzoo.trunk.moe import MoeFeedForward
from mmzoo.trunk.packing import Packed, pack

TOKENS, DIM, HIDDEN, EXPERTS, TOP_K = 2048, 384, 1536, 8, 2
NAMES = ("image", "audio", "text", "fmri", "skeleton")
PLAIN = {"activation": "gelu", "sub_norm": False}


def make(tokens: int) -> tuple[dict[str, FeedForward], Packed]:
    """Build the networks and a buffer of five modalities."""
    torch.manual_seed(0)
    sizes = [tokens // len(NAMES)] * (len(NAMES) - 1)
    sizes.append(tokens - sum(sizes))
    groups = [
        [TokenSequence(torch.randn(1, n, DIM), torch.ones(1, n, dtype=torch.bool), torch.tensor([0]), m)]
        for m, n in zip(NAMES, sizes, strict=True)
    ]
    routed = {**PLAIN, "num_experts": EXPERTS, "hidden_dim": HIDDEN // TOP_K, "router": {"top_k": TOP_K}}
    fixed = {"num_experts": len(NAMES), "hidden_dim": HIDDEN, "router": {"type": "modality", "top_k": 1}}
    dense = schema.parse(SharedFeedForward.Config, {**PLAIN, "hidden_dim": HIDDEN})
    made: dict[str, FeedForward] = {"dense": dense.build(dim=DIM, modalities=NAMES)}
    for kernel in (GroupedKernel.SLICES, GroupedKernel.GROUPED_MM):
        options = schema.parse(MoeFeedForward.Config, {**routed, "kernel": kernel.value})
        torch.manual_seed(1)
        made[f"8 experts, top-2, {kernel.value}"] = options.build(dim=DIM, modalities=NAMES)
    options = schema.parse(MoeFeedForward.Config, {**PLAIN, **fixed})
    made["modality routed"] = options.build(dim=DIM, modalities=NAMES)
    return made, pack(groups, NAMES)


def step(module: FeedForward, packed: Packed, gradient: Tensor) -> Callable[[], Tensor]:
    """Return forward and backward, balance loss included, gradients of input and weights dropped after."""

    def run() -> Tensor:
        x = packed.buffer.detach().requires_grad_()
        y, aux = module(x, seq=packed.seq, ctx=MixerContext(training=True))
        torch.autograd.backward([y, *aux.values()], [gradient, *(torch.ones(()) for _ in aux)])
        nn.Module.zero_grad(module)
        return y.detach()

    return run


def main() -> int:
    """Check, time, print."""
    arguments = parser(__doc__ or "").parse_args()
    torch.set_num_threads(arguments.threads)
    made, packed = make(256 if arguments.quick else TOKENS)
    gradient = torch.randn(packed.buffer.shape)
    variants = {name: step(module, packed, gradient) for name, module in made.items()}
    first, second = (variants[f"8 experts, top-2, {k}"]() for k in ("slices", "grouped_mm"))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)
    results = compare(variants, rounds=3 if arguments.quick else arguments.rounds)
    for result in results:
        result.extra["GFLOP"] = made[result.name].flops(packed.seq.num_tokens) / 1e9
    title = f"{packed.seq.num_tokens} tokens, float32, forward and backward"
    finish({title: results}, machine(arguments.threads), as_object=arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
