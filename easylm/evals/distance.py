"""How far a policy has gone from another: the KL divergence, sampled.

For an answer y of the policy, log p(y) - log q(y): its mean over answers is the KL in
nats per answer, what best of N spends log N - (N - 1) / N of.
"""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np

from easylm.data.sequences import lay_out
from easylm.models.heads import token_logps
from easylm.rollout.ask import encoded
from easylm.rollout.sampler import BUCKET, complete
from easylm.training.checkpoint import Loaded


def sampled(
    policy: Loaded, other: Loaded, talks: Sequence, key, **options
) -> tuple[list[str], np.ndarray]:
    """One answer of the policy to each conversation, and log p - log q of each.

    At temperature 1. `options` are those of rollout/sampler.py.
    """
    asked = encoded(policy, talks)
    model, params, tokenizer = policy[:3]
    said = complete(model, params, tokenizer, asked, key, temperature=1.0, **options)
    rows = []
    for ids, one in zip(asked, said, strict=True):
        counts = np.arange(len(ids) + len(one["tokens"])) >= len(ids)
        rows.append([[(np.array(ids + one["tokens"]), counts)]])
    longest = max(len(item[0][0]) for [item] in rows)
    seqs = lay_out(rows, -(-longest // BUCKET) * BUCKET)
    mine, theirs = (_of_answers(loaded, seqs) for loaded in (policy, other))
    return [one["text"] for one in said], mine - theirs


def _of_answers(loaded: Loaded, seqs) -> np.ndarray:
    program = jax.jit(partial(token_logps, loaded.model))
    logps = np.asarray(program(loaded.params, seqs), np.float64)
    return (logps * seqs.mask).sum(-1)
