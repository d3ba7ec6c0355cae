"""Means with intervals, from what policies and reward models were observed to do.

One observation per seed. Intervals are 95% of a bootstrap that draws seeds, and the
prompts of each family, with return; two conditions are compared on the same draws. With
one seed they say nothing about other seeds.
"""

import statistics
from collections.abc import Callable, Mapping

import numpy as np

from easylm.evals import world as judge

DRAWS = 400


def estimate(runs: list[Mapping]) -> dict[str, dict]:
    """Observations of a policy, one per seed -> {category: {"mean", "low", "high"}}."""
    means = _mean([judge.summary(one) for one in runs])
    draws = [_draw(runs, seed) for seed in range(DRAWS)]
    return {
        name: _interval(mean, [draw[name] for draw in draws])
        for name, mean in means.items()
    }


def difference(a: list, b: list, name: str = "average") -> dict:
    """Of two policies, the same seeds and prompts being drawn for both."""
    means = [_mean([judge.summary(one) for one in x]) for x in (a, b)]
    draws = [_draw(a, n)[name] - _draw(b, n)[name] for n in range(DRAWS)]
    return _interval(means[0][name] - means[1][name], draws)


def of_prompts(runs: list, value: Callable) -> dict:
    """Mean over seeds and prompts of value(run), a list with a number per prompt."""
    columns = [np.array(value(run)) for run in runs]
    draws = []
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        chosen = [columns[i] for i in rng.integers(len(columns), size=len(columns))]
        draws.append(np.mean([rng.choice(x, len(x)).mean() for x in chosen]))
    return _interval(np.mean([x.mean() for x in columns]), draws)


def signed(gap) -> str:
    mean, low, high = (100 * gap[key] for key in ("mean", "low", "high"))
    return f"{mean:+.1f} points [{low:+.1f}, {high:+.1f}]"


def _draw(runs, seed) -> dict:
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(runs), size=len(runs))
    return _mean([judge.summary(runs[i], rng) for i in chosen])


def _mean(summaries) -> dict:
    return {k: statistics.fmean(one[k] for one in summaries) for k in summaries[0]}


def _interval(mean, draws) -> dict:
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"mean": float(mean), "low": float(low), "high": float(high)}
