"""Which parameters learn: parts frozen and thawed in order; frozen parts stay in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from mmzoo.models.finetune.parts import select

THAW = "~"
"""Before a part: let it learn after all."""


def set_frozen(
    model: nn.Module, entries: Sequence[str], where: str = "model.freeze", *, keep: Iterable[str] = ()
) -> None:
    """Freeze each part named, thaw each with `~` before it, in order; parameters named in `keep` stay as is.

    `[trunk, ~trunk.norms]` trains the trunk's norm layers alone.
    """
    parameters, kept = dict(model.named_parameters()), set(keep)
    for entry in entries:
        for name in select(model, entry.removeprefix(THAW), where):
            if name not in kept:
                parameters[name].requires_grad_(entry.startswith(THAW))


def settle(module: nn.Module) -> None:
    """Put every part that has parameters but learns none of them into evaluation mode.

    Why: a frozen part is a fixed function. No dropout, no stochastic depth, no new batch statistics; what
    holds a single learning parameter (a LoRA factor, a norm) trains as usual.
    """
    parameters = list(module.parameters())
    if not parameters:
        return
    if any(p.requires_grad for p in parameters):
        for child in module.children():
            settle(child)
    else:
        module.eval()


def learning(model: nn.Module) -> list[str]:
    """Return the names of the parameters that learn."""
    return [name for name, p in model.named_parameters() if p.requires_grad]
