"""Means with intervals, from what policies and reward models were observed to do.

One observation per seed. Intervals are 95% of a bootstrap that draws seeds, and of each
family the facts that prompts rest on, with return; what is compared is compared on the
same draws. With one seed they say nothing about other seeds.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence

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


def contrast(policies: Sequence[tuple[float, list]], name: str = "average") -> dict:
    """Sum of weight x category, of (weight, observations), on the same draws."""
    total = lambda summaries: sum(
        weight * one[name] for (weight, _), one in zip(policies, summaries, strict=True)
    )
    mean = total([_mean([judge.summary(one) for one in runs]) for _, runs in policies])
    draws = [
        total([_draw(runs, seed) for _, runs in policies]) for seed in range(DRAWS)
    ]
    return _interval(mean, draws)


def difference(a: list, b: list, name: str = "average") -> dict:
    """Of two policies."""
    return contrast([(1.0, a), (-1.0, b)], name)


def of_prompts(runs: list, value: Callable, facts: Callable) -> dict:
    """Mean over seeds and prompts of value(run), a number for each prompt."""
    columns = [(np.array(value(run)), np.array(facts(run))) for run in runs]
    draws = []
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        chosen = [columns[i] for i in rng.integers(len(columns), size=len(columns))]
        means = [values[judge.by_fact(known, rng)].mean() for values, known in chosen]
        draws.append(np.mean(means))
    return _interval(np.mean([values.mean() for values, _ in columns]), draws)


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
