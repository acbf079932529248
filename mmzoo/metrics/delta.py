"""How a model of many tasks compares with one model a task."""

from __future__ import annotations

from collections.abc import Mapping

from mmzoo.errors import ConfigError, close_matches
from mmzoo.metrics.base import LOWER_IS_BETTER


def delta_m(figures: Mapping[str, float], baselines: Mapping[str, float]) -> float:
    """Return the mean relative gain over single-task models (per cent).

    Math: 100 / T Σ_t s_t (M_t - S_t) / S_t over the T figures of `baselines`, named `task/figure`; M is in
    `figures`, S in `baselines`; s = -1 where less is better (an error, a rank, a loss), else 1.
    Ref: Maninis et al. (CVPR 2019). It means something only beside the statement of which S was taken.
    """
    gains: list[float] = []
    for name, single in baselines.items():
        if name not in figures:
            do = close_matches(name, figures)
            raise ConfigError.at("baselines", f"no figure {name!r}", "figures of the run's metrics", do)
        if not single > 0:
            raise ConfigError.at(f"baselines.{name}", f"{single:g}", "more than 0", "Mend the number.")
        words = name.split("/")
        less = words[-1] in LOWER_IS_BETTER or words[1:2] == ["loss"]
        sign = -1.0 if less else 1.0
        gains.append(sign * (figures[name] - single) / single)
    return 100 * sum(gains) / len(gains) if gains else 0.0
