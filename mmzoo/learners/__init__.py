"""LightningModules."""

from mmzoo.registry import Row

TABLE = {
    "multitask": Row(
        "mmzoo.learners.multitask:MultitaskLearner", "weighted sum of task losses, AdamW, cosine"
    ),
}

BALANCERS = {
    "static": Row("mmzoo.learners.balance.losses:Static", "sum by the tasks' weights (the default)"),
    "equal": Row("mmzoo.learners.balance.losses:Equal", "plain sum, weights left out"),
    "uncertainty": Row("mmzoo.learners.balance.losses:Uncertainty", "learned log-variances (Kendall)"),
    "automatic": Row("mmzoo.learners.balance.losses:Automatic", "learned weights with a price (Liebel)"),
    "dwa": Row("mmzoo.learners.balance.history:Dwa", "more weight where the loss falls slowly"),
    "rlw": Row("mmzoo.learners.balance.history:Rlw", "random weights every step"),
    "gls": Row("mmzoo.learners.balance.losses:Gls", "geometric mean of the losses"),
    "famo": Row("mmzoo.learners.balance.history:Famo", "equal relative decrease at one gradient a step"),
    "stch": Row("mmzoo.learners.balance.losses:Stch", "soft maximum of the losses (smooth Tchebycheff)"),
    "pcgrad": Row("mmzoo.learners.balance.conflict:PcGrad", "gradients lose what points against another"),
    "gradvac": Row("mmzoo.learners.balance.conflict:GradVac", "cosines raised to their running means"),
    "cagrad": Row("mmzoo.learners.balance.directions:CaGrad", "near the mean, best for the worst-off task"),
    "mgda": Row("mmzoo.learners.balance.directions:Mgda", "shortest vector in the gradients' convex hull"),
    "gradnorm": Row("mmzoo.learners.balance.magnitudes:GradNorm", "learned weights that even out progress"),
    "imtl": Row("mmzoo.learners.balance.directions:Imtl", "equal projections onto all gradients"),
    "nash_mtl": Row("mmzoo.learners.balance.directions:NashMtl", "Nash bargaining between the tasks"),
    "aligned_mtl": Row("mmzoo.learners.balance.directions:AlignedMtl", "gradients of equal singular values"),
    "db_mtl": Row("mmzoo.learners.balance.magnitudes:DbMtl", "log losses, equally long mean gradients"),
}
