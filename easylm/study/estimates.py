"""Means with intervals, from what policies and reward models were observed to do.

One observation per seed. Intervals are 95% of a bootstrap that draws seeds, and of each
family the facts that prompts rest on, with return; what is compared is compared on the
same draws. With one seed they say nothing about other seeds.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from easylm.evals import world as judge

DRAWS = 400


class Marks(NamedTuple):
    """Of a policy in each category: over its seeds, and in every draw."""

    mean: dict[str, float]
    draws: dict[str, np.ndarray]  # [DRAWS]; the n-th is the same seeds for all policies


def marks(runs: list[Mapping]) -> Marks:
    """From what was observed, one for each seed."""
    mean = _mean([judge.summary(one) for one in runs])
    draws = [_draw(runs, seed) for seed in range(DRAWS)]
    return Marks(mean, {name: np.array([x[name] for x in draws]) for name in mean})


def estimate(of: Marks, name: str = "average") -> dict:
    """{"mean", "low", "high"} of a category."""
    return contrast([(1.0, of)], name)


def difference(a: Marks, b: Marks, name: str = "average") -> dict:
    return contrast([(1.0, a), (-1.0, b)], name)


def contrast(terms: Sequence[tuple[float, Marks]], name: str = "average") -> dict:
    """The sum of weight x category, on the same draws."""
    mean = sum(weight * one.mean[name] for weight, one in terms)
    return _interval(mean, sum(weight * one.draws[name] for weight, one in terms))


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
