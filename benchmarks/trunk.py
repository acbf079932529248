"""The packed trunk against padded passes, and against timm's ViT of the same size (specs: mild and
skewed batches).

Run: python benchmarks/trunk.py [--rounds 9] [--threads 1] [--dtype float32 bfloat16] [--quick] [--json]

mild, skewed: forward and backward of dim 384, 6 heads, plain pre-norm blocks with a feed-forward (4x,
GELU) a modality, from padded tokens to padded tokens, five modalities. Baselines compute one padded pass
a modality, with explicit softmax attention or with SDPA and a mask; same weights, outputs compared
before anything is timed. onepeace: the same with Sub-LN, GeGLU, LayerScale and a learned relative bias
for each modality (mild batch). vit: a training step on images, patch embedding and optimizer (fused
AdamW) included, against timm's model. Targets: packed >= 1.3x on mild, >= 3x on skewed; vit >= 0.95x.
Memory: growth of the peak resident set in a fresh process a variant, weights and inputs allocated
before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from harness import Result, compare, finish, gemm_peak, machine, parser, peak_rss_mib, print_growth
from torch import Tensor

from mmzoo import schema
from mmzoo.batch import TokenSequence
from mmzoo.models.vit.interop import from_timm
from mmzoo.trunk.trunk import Trunk

DIM, HEADS = 384, 6
PLAIN = {
    "mixer": {"qkv_bias": "all", "sub_norm": False},
    "ffn": {"activation": "gelu", "sub_norm": False},
    "layer_scale_init": None,
}
BATCHES = {
    "mild": {
        "image": [197] * 4,
        "text": [8, 14, 21, 30, 37, 45, 52, 64],
        "audio": [298, 257, 451, 474],
        "fmri": [9, 17, 23, 31, 40, 44, 58, 63],
        "skeleton": [33, 61, 90, 119],
    },
    "skewed": {
        "image": [197] + [17] * 7,
        "text": [64] + [8] * 15,
        "audio": [500] + [50] * 7,
        "fmri": [64] + [8] * 15,
        "skeleton": [120] + [15] * 7,
    },
}
VARIANTS = ("padded, explicit", "padded, SDPA", "packed")


@dataclass
class Work:
    """A trunk, padded inputs, and the gradient fed to its outputs."""

    trunk: Trunk
    inputs: dict[str, TokenSequence]
    weights: dict[str, Tensor]

    @property
    def lengths(self) -> list[int]:
        """Return the length of every sample's sequence."""
        return [n for s in self.inputs.values() for n in s.valid.sum(1).tolist()]

    @property
    def padding(self) -> float:
        """Return padded tokens over real ones."""
        return sum(s.valid.numel() for s in self.inputs.values()) / sum(self.lengths)


def make(batch: str, depth: int, *, bias: bool) -> Work:
    """Build the trunk and the batch; rows are shuffled, as a data loader gives them."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    options = {"dim": DIM, "num_heads": HEADS, "depth": depth, **({} if bias else PLAIN)}
    trunk = Trunk(schema.parse(Trunk.Config, options), modalities=tuple(BATCHES[batch]))
    inputs, weights = {}, {}
    for name, lengths in BATCHES[batch].items():
        counts = torch.tensor(lengths)[torch.randperm(len(lengths), generator=generator)]
        n = int(counts.max())
        tokens = torch.randn(len(lengths), n, DIM, generator=generator).requires_grad_()
        valid = torch.arange(n) < counts[:, None]
        table = (torch.randn(1, HEADS, n, n, generator=generator).requires_grad_(),) if bias else ()
        inputs[name] = TokenSequence(tokens, valid, torch.arange(len(lengths)), name, biases=table)
        weights[name] = torch.randn(tokens.shape, generator=generator) * valid[..., None]
    return Work(trunk, inputs, weights)


def packed(work: Work) -> dict[str, Tensor]:
    """Run all passes in one buffer."""
    groups = [[s] for s in work.inputs.values()]
    return {g[0].modality: g[0].tokens for g in work.trunk(groups).groups}


def padded(work: Work, attention: Callable[..., Tensor]) -> dict[str, Tensor]:
    """Run one padded pass a modality, as most code bases do."""
    outputs = {}
    for name, s in work.inputs.items():
        k, n, _ = s.tokens.shape
        x, keys = s.tokens, s.valid[:, None, None, :]
        bias = s.biases[0] if s.biases else None
        for block in work.trunk.blocks:
            mixer, ffn = block.mixer, block.ffn.networks[name]
            q, k_, v = (
                mixer._project(block.norm1(x)).view(k, n, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
            )
            y = attention(q, k_, v, keys, bias).transpose(1, 2).reshape(k, n, DIM)
            y = mixer.out(y if mixer.norm is None else mixer.norm(y))
            x = x + (y if block.gamma_1 is None else block.gamma_1 * y)
            y = ffn(block.norm2(x))
            x = x + (y if block.gamma_2 is None else block.gamma_2 * y)
        outputs[name] = work.trunk.norm.norms[name](x)
    return outputs


def explicit(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
    """Write attention out: scores, mask, softmax, weighted sum."""
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    return scores.masked_fill(~keys, -torch.inf).softmax(-1).to(v.dtype) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
    """Use scaled_dot_product_attention with a mask."""
    mask = keys if bias is None else bias.masked_fill(~keys, -torch.inf).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def step(work: Work, variant: str, dtype: torch.dtype) -> Callable[[], None]:
    """Return one forward and backward of a variant."""

    def run() -> None:
        work.trunk.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32):
            outputs = forward(work, variant)
        torch.autograd.backward(
            list(outputs.values()), [work.weights[m].to(o.dtype) for m, o in outputs.items()]
        )

    return run


def forward(work: Work, variant: str) -> dict[str, Tensor]:
    """Run a variant by name."""
    if variant == "packed":
        return packed(work)
    return padded(work, explicit if variant.endswith("explicit") else sdpa)


def check(work: Work) -> float:
    """Return the largest difference of any variant's real tokens from the float64 padded pass."""
    with torch.no_grad():
        outputs = {v: forward(work, v) for v in VARIANTS}
        work.trunk.double()
        doubled = {
            m: TokenSequence(
                s.tokens.double(), s.valid, s.index, m, biases=tuple(b.double() for b in s.biases)
            )
            for m, s in work.inputs.items()
        }
        exact = padded(Work(work.trunk, doubled, {}), explicit)
        work.trunk.float()
    return max(
        float((o[m] - exact[m])[work.inputs[m].valid].abs().max()) for o in outputs.values() for m in exact
    )


def trunk_section(name: str, depth: int, dtype: torch.dtype, options: Options) -> list[Result]:
    """Time one batch, with model FLOPs utilisation and memory."""
    bias = name == "onepeace"
    work = make("mild" if bias else name, depth, bias=bias)
    error = check(work)
    if error > 1e-4:
        raise SystemExit(f"{name}: outputs differ by {error:.1e}")
    results = compare({v: step(work, v, dtype) for v in VARIANTS}, rounds=options.rounds)
    peak = gemm_peak(str(dtype).removeprefix("torch."))
    flops = 3 * work.trunk.flops(work.lengths)
    for r in results:
        r.extra["MFU"] = flops / (1e6 * r.cpu.median_ms) / peak
        r.extra["tokens/s"] = round(sum(work.lengths) / (1e-3 * r.wall.median_ms))
        if options.memory:
            kind = str(dtype).removeprefix("torch.")
            r.extra["peak MiB"] = round(peak_rss_mib(__file__, ["--peak-of", name, r.name, kind]))
    results[0].extra["padding"] = work.padding
    return results


def vit_section(depth: int, rows: int, dtype: torch.dtype, options: Options) -> list[Result]:
    """Time a training step on images against timm's ViT, with its own attention and with its unfused one."""
    import timm

    images, labels = torch.randn(rows, 3, 224, 224), torch.arange(rows)

    def timm_step(*, fused: bool) -> Callable[[], None]:
        model = timm.create_model("vit_small_patch16_224", pretrained=False, depth=depth, num_classes=1000)
        for block in model.blocks:
            block.attn.fused_attn = fused
        return training_step(model, model, images, labels, dtype)

    return compare(
        {
            "timm": timm_step(fused=True),
            "timm, fused_attn=False": timm_step(fused=False),
            "packed": our_vit_step(depth, images, labels, dtype),
        },
        rounds=options.rounds,
        warmup=2,
    )


def our_vit_step(depth: int, images: Tensor, labels: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """Put timm's embedding and head around our trunk, with the same weights."""
    import timm

    vit = timm.create_model("vit_small_patch16_224", pretrained=False, depth=depth, num_classes=1000)
    options = {**PLAIN, "ffn": {"type": "shared", **PLAIN["ffn"]}, "norm_eps": 1e-6, "final_norm": "shared"}
    config = schema.parse(Trunk.Config, {"dim": DIM, "num_heads": HEADS, "depth": depth, **options})
    trunk = Trunk(config, modalities=("image",))
    trunk.load_state_dict(from_timm(vit.state_dict()))
    whole = torch.nn.ModuleDict({"trunk": trunk, "embed": vit.patch_embed, "head": vit.head})
    whole.register_parameter("cls", vit.cls_token)
    whole.register_parameter("pos", vit.pos_embed)

    def logits(x: Tensor) -> Tensor:
        tokens = vit._pos_embed(vit.patch_embed(x))
        valid = torch.ones(tokens.shape[:2], dtype=torch.bool)
        out = trunk([[TokenSequence(tokens, valid, torch.arange(len(x)), "image")]]).groups[0][0]
        return vit.head(out.tokens[:, 0])

    return training_step(whole, logits, images, labels, dtype)


def training_step(
    model: torch.nn.Module,
    logits: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    dtype: torch.dtype,
) -> Callable[[], None]:
    """Return forward, backward and a fused AdamW step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32):
            loss = F.cross_entropy(logits(images).float(), labels)
        loss.backward()
        optimizer.step()

    return run


@dataclass
class Options:
    """What the command line asks of every section."""

    rounds: int
    memory: bool


def main() -> None:
    """Parse the arguments, run, print."""
    line = parser(__doc__ or "")
    sections = [*BATCHES, "onepeace", "vit"]
    line.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    line.add_argument("--only", nargs="+", default=sections, choices=sections, help="sections to run")
    line.add_argument("--depth", type=int, default=6, help="blocks of the trunk (and of the ViT)")
    line.add_argument("--no-memory", action="store_true", help="skip the memory runs")
    line.add_argument(
        "--peak-of", nargs=3, metavar=("SECTION", "VARIANT", "DTYPE"), help="(used by the memory runs)"
    )
    args = line.parse_args()
    torch.set_num_threads(args.threads)
    depth, rounds = (2, 3) if args.quick else (args.depth, args.rounds)
    if args.peak_of:
        name, variant, dtype = args.peak_of
        work = make("mild" if name == "onepeace" else name, 3, bias=name == "onepeace")
        for p in work.trunk.parameters():
            p.grad = torch.zeros_like(p)
        print_growth(step(work, variant, getattr(torch, dtype)))
        return
    options = Options(rounds, memory=not (args.no_memory or args.quick))
    made = {}
    for name in args.only:
        for dtype in args.dtype:
            kind = getattr(torch, dtype)
            if name == "vit":
                made[f"{name} {dtype}"] = vit_section(depth, 2 if args.quick else 4, kind, options)
            else:
                made[f"{name} {dtype}"] = trunk_section(name, depth, kind, options)
    finish(made, {**machine(args.threads), "depth": depth, "rounds": rounds}, as_object=args.json)


if __name__ == "__main__":
    sys.exit(main())
