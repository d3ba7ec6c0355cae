"""What reward models pick of N answers, alone and together.

A judgement has for each prompt the rewards and the golds of the same candidates.
"""

import numpy as np

from easylm.evals.best_of_n import expected


def best_of(run, n: int, of: str = "golds") -> list[float]:
    """Of each prompt: what is expected of the best of n by reward."""
    picks = run["picks"]
    return [
        expected(np.array(rewards), np.array(values), n)
        for rewards, values in zip(picks["rewards"], picks[of], strict=True)
    ]


def ensemble(runs, how: str, n: int) -> list[float]:
    """The gold that is expected of the best of n, by the mean or the least of rewards.

    Each model's rewards are scaled to mean 0 and deviation 1 over all candidates, as
    models differ in both.
    """
    scaled = [_scaled(np.array(run["picks"]["rewards"])) for run in runs]
    together = {"mean": np.mean, "min": np.min}[how](scaled, axis=0)
    golds = runs[0]["picks"]["golds"]
    return [
        expected(rewards, np.array(values), n)
        for rewards, values in zip(together, golds, strict=True)
    ]


def _scaled(rewards):
    return (rewards - rewards.mean()) / rewards.std()
