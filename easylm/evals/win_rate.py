"""Win rates, plain and as they would be if both sides wrote equally long answers.

The length-controlled one follows AlpacaEval 2 (arXiv 2404.04475): a logistic model of
the judge's preference with a term for the difference in length, which is then set to 0.
"""

import numpy as np

from easylm.errors import UserError

RIDGE = 0.01  # keeps the weights finite where one side always wins
STEPS = 50


def win_rate(preferences) -> float:
    """[N] probabilities, or 0, 1/2 and 1, that the judge prefers the model's answer."""
    return float(np.mean(_checked(preferences)))


def length_controlled(preferences, lengths, other_lengths) -> float:
    """sigmoid(a) of logit P = a + b tanh(d / std(d)), d the difference in length."""
    p = _checked(preferences)
    d = np.asarray(lengths, np.float64) - np.asarray(other_lengths, np.float64)
    if d.shape != p.shape:
        raise UserError(f"{len(p)} preferences and {len(d)} lengths; give as many")
    x = np.stack([np.ones_like(d), np.tanh(d / (d.std() or 1.0))], axis=1)
    weights = np.zeros(2)
    for _ in range(STEPS):  # Newton's method
        q = _sigmoid(x @ weights)
        gradient = x.T @ (p - q) - RIDGE * weights
        curvature = (x * (q * (1 - q))[:, None]).T @ x + RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        weights += step
        if np.abs(step).max() < 1e-10:
            break
    return float(_sigmoid(weights[0]))


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _checked(preferences) -> np.ndarray:
    p = np.asarray(preferences, np.float64)
    if p.ndim != 1 or not p.size or (p < 0).any() or (p > 1).any():
        raise UserError(f"preferences must be [N] from 0 to 1, they are {p!r:.60}")
    return p
