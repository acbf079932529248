"""Contrastive losses against open_clip's: speed (forward and backward, float32, width 256) and extra memory.

Run: python benchmarks/contrast.py [--rounds 9] [--threads 1] [--quick] [--json]

Both get the same vectors and scalars; ours are called as training calls them, through the objective.
Gradients are compared with each other before anything is timed. Memory: growth of the peak resident set in a
fresh process a variant at 8,192 rows, inputs and their gradients allocated before.
Targets: InfoNCE >= 1.3x open_clip's at 4,096 rows; at 8,192 at most 1/8 of its memory, and under 200 MiB.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import Result, compare, finish, machine, parser, peak_rss_mib, print_growth
from torch import Tensor

from mmzoo.batch import Batch, Prediction
from mmzoo.objectives.contrast import InfoNce, SigLip

WIDTH = 256
LOSSES = {"InfoNCE": ("open_clip ClipLoss", "infonce"), "SigLIP": ("open_clip SigLipLoss", "siglip")}
"""Section -> the baseline and ours."""
MEMORY_ROWS = 8192


def main() -> None:
    """Parse the arguments, run, print."""
    options = parser(__doc__)
    options.add_argument(
        "--peak-of", nargs=2, metavar=("VARIANT", "ROWS"), help="print one variant's extra MiB"
    )
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print_peak(args.peak_of[0], int(args.peak_of[1]))
        return
    sections: dict[str, list[Result]] = {}
    for rows in (512,) if args.quick else (1024, 4096):
        for loss, pair in LOSSES.items():
            sections[f"{loss} at {rows:,} rows"] = timed(pair, rows, 3 if args.quick else args.rounds)
    rows = 1024 if args.quick else MEMORY_ROWS
    for loss in LOSSES:
        for result in sections[next(s for s in reversed(sections) if s.startswith(loss))]:
            result.extra[f"extra MiB at {rows:,}"] = peak_rss_mib(
                __file__, ["--peak-of", result.name, str(rows)]
            )
    finish(sections, {**machine(args.threads), "width": WIDTH}, as_object=args.json)


def timed(pair: tuple[str, str], rows: int, rounds: int) -> list[Result]:
    """Check the gradients of the two against each other, then time both."""
    made = {name: steps(name, rows) for name in pair}
    for run, _ in made.values():
        run()
    both = list(zip(*(inputs for _, inputs in made.values()), strict=True))
    error = max(float((y.grad - x.grad).norm() / x.grad.norm()) for x, y in both)
    if error > 1e-5:
        sys.exit(f"{pair[1]} at {rows} rows: gradients differ by {error:.1e}; no use in timing it")
    results = compare({name: run for name, (run, _) in made.items()}, rounds=rounds)
    results[1].extra["gradient error"] = f"{error:.1e}"
    return results


def steps(variant: str, rows: int) -> tuple[Callable[[], object], list[Tensor]]:
    """Return a function that runs forward and backward once, and the tensors whose gradients it fills."""
    generator = torch.Generator().manual_seed(0)
    a, b = (
        F.normalize(torch.randn(rows, WIDTH, generator=generator), dim=1).requires_grad_() for _ in range(2)
    )
    scale, offset = torch.tensor(14.3, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    inputs = [a, b, scale, offset] if "sig" in variant.lower() else [a, b, scale]
    if variant.startswith("open_clip"):
        from open_clip.loss import ClipLoss, SigLipLoss

        theirs = SigLipLoss() if "Sig" in variant else ClipLoss()

        def loss() -> Tensor:
            return theirs(*inputs)
    else:
        objective = (SigLip if variant == "siglip" else InfoNce).Config().build()
        index, batch = torch.arange(rows), Batch(tuple(str(i) for i in range(rows)))

        def loss() -> Tensor:
            found = {m: Prediction(x, index, scale, offset) for m, x in (("image", a), ("text", b))}
            return objective(found, batch, "").mean()

    def run() -> None:
        for x in inputs:
            x.grad = None
        loss().backward()

    return run, inputs


def print_peak(variant: str, rows: int) -> None:
    """Print by how many MiB forward and backward raise this process's memory."""
    steps(variant, 256)[0]()
    run, inputs = steps(variant, rows)
    for x in inputs:
        x.grad = torch.ones_like(x)
    print_growth(run)


if __name__ == "__main__":
    main()
