"""What the online objectives share: samples cut into updates, and laid out in rows.

J samples of this process, N new tokens, R rows, T time.
"""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from easylm.errors import UserError
from easylm.losses.masked import Mean
from easylm.losses.policy_gradient import aggregate
from easylm.models.heads import token_logps
from easylm.rollout import packed
from easylm.rollout.packed import Packed
from easylm.rollout.rollouts import everywhere
from easylm.sharding import cut

SEGMENTS = 32  # answers in a row, at most


class Rows(NamedTuple):
    """How samples are laid out. Of config.data and config.microbatches."""

    length: int  # T
    step: int  # rows are a multiple of it: microbatches times devices


def policy(params):
    """The policy's own parameters."""
    others = ("value", "memory", "reference")
    return {k: v for k, v in params.items() if k not in others}


def shuffled(samples, key, rounds: int, parts: int, shuffle=True) -> list[list]:
    """[round][part]: numbers of samples, so many in each part of each round.

    The same part in every round where they are not shuffled.
    """
    count = len(samples.there)
    if count % parts:
        raise UserError(
            f"{count} answers of a process do not divide into {parts} updates; change"
            " objective.minibatches, batch or rollout.group"
        )
    orders = [np.arange(count)] * rounds
    if shuffle:
        draw = _generator(key).permutation
        orders = [draw(count) for _ in range(rounds)]
    return [np.split(order, parts) for order in orders]


def dealt(count: int, key, parts: int, shuffle=True) -> list[np.ndarray]:
    """The numbers below `count`, in parts as even as can be; some may be empty."""
    order = _generator(key).permutation(count) if shuffle else np.arange(count)
    return np.array_split(order, parts)


def lay_out(samples, which, rows: Rows, layout) -> tuple[Packed, np.ndarray]:
    """The samples in rows, and which of `which` they are: those that are there."""
    there = which[samples.there[which]]
    items = [[samples.segment(j)] for j in there]
    return in_rows(items, len(which), rows, layout), there


def in_rows(items, most: int, rows: Rows, layout, answers: int = 1) -> Packed:
    """Items of so many answers in rows; every process has `most` of them, or fewer."""
    step = step_of(most, rows, layout.ways("batch") // packed.share(layout))
    places = SEGMENTS // answers
    return packed.pack(items, rows.length, layout, step=step, most=places)


def step_of(most: int, rows: Rows, processes: int) -> int:
    """Rows come in multiples of this: few different numbers, so that few programs are
    compiled."""
    quarter = -(-most // 4)
    return max(-(-quarter * processes // rows.step), 1) * rows.step


def spread(made: Packed, there, arrays: dict) -> dict:
    """{name: [J, N] or [J]} at the tokens of the rows, float32[R, T]."""
    width = max(made.length.max(initial=0), 1)
    wide = lambda x: x[there] if x.ndim == 2 else np.tile(x[there][:, None], width)
    return {name: packed.write(made, wide(x)) for name, x in arrays.items()}


def mean_over(x, mask: np.ndarray, there) -> Mean:
    """Of float [J, N] over the tokens of what is there."""
    mask = mask & there[:, None]
    return Mean(float(np.sum(x[mask])), float(mask.sum()))


def mean_of(x, there) -> Mean:
    """Of float [J] over what is there."""
    return Mean(float(np.sum(x[there])), float(there.sum()))


def to_read(samples, most: int = 64) -> list[dict]:
    """The first answers with their rewards, for a log."""
    found = []
    for j in np.flatnonzero(samples.there)[:most]:
        row = {
            "item": int(samples.items[j // samples.group]),
            "prompt": samples.questions[j // samples.group],
            "answer": samples.texts[j],
            "reward": round(float(samples.rewards[j]), 6),
            "tokens": int(samples.lengths[j]),
            "finished": bool(samples.finished[j]),
        }
        terms = {n: round(float(x[j]), 6) for n, x in samples.terms.items()}
        found.append(row | {"rewards": terms})
    return found


def reference(frozen):
    """The frozen reference, which a coefficient of KL asks for."""
    if "reference" not in frozen:
        raise UserError(
            "kl_coef asks the reference; set objective.kl_coef=0, or reference.path to"
            " a directory"
        )
    return frozen["reference"]


def scores(samples) -> dict[str, Mean]:
    """What is logged about the answers of every iteration."""
    said = np.where(samples.mask, samples.logps, 0.0).sum(axis=1)
    return {
        "objective/scores": mean_of(samples.rewards, samples.there),
        "objective/entropy": mean_of(-said, samples.there),
    }


def distance(samples, old_logps, ref_logps) -> dict[str, Mean]:
    """log(policy / reference) of the answers, and of their tokens."""
    apart = np.where(samples.mask, old_logps - ref_logps, 0.0)
    return {
        "objective/kl": mean_of(apart.sum(axis=1), samples.there),
        "objective/kl_per_token": mean_over(apart, samples.mask, samples.there),
    }


def logps_of(model, temperature):
    """-> (params, seqs) -> log-probabilities [R, T]; compiled once for a model."""
    return _logps_of(model._replace(spec=None), temperature)


def gap(samples, there, again: np.ndarray, limit: float) -> dict[str, Mean]:
    """By how much the sampler's log-probabilities differ from the trainer's, `again`.

    `again` is about the samples `there`, at the sampler's temperature.
    """
    mask = samples.mask[there]
    apart = np.abs(np.where(mask, again - samples.logps[there], 0.0))
    found = Mean(float(apart.sum()), float(mask.sum()))
    worst = float(apart.max(initial=0.0))
    total = everywhere({"gap": found})["gap"]
    mean = total.total / max(total.count, 1.0)
    if not mean <= limit:
        raise UserError(
            "sampler and trainer disagree about the log-probability of a sampled token"
            f" by {mean:.3g} on average, {worst:.3g} at most; rollout.max_gap is"
            f" {limit}. Compute in float32 (model.dtype), lay both out alike"
            " (rollout.mesh), or raise rollout.max_gap if that is the noise of bfloat16"
        )
    return {"rollout/logp_gap": found, "rollout/logp_gap_max": Mean(worst, 1.0)}


def over_answer(x, segments, mask, total=False):
    """The mean, or the total, of x [R, T] over the scored tokens of its segment, at
    every token."""
    which = jnp.arange(1, SEGMENTS + 1, dtype=segments.dtype)
    mine = (segments[:, None, :] == which[None, :, None]) & (mask != 0)[:, None, :]
    sums = jnp.sum(jnp.where(mine, x[:, None, :], 0.0), axis=-1)
    if not total:
        sums = sums / jnp.maximum(jnp.sum(mine, axis=-1), 1)
    at = jnp.maximum(segments - 1, 0)
    return jnp.where(mask != 0, jnp.take_along_axis(sums, at, axis=1), 0.0)


def mix(batches: list, ptx, weight: float, reduce: str, limit) -> list:
    """The batches, each with its share of the rows of other text (PTX).

    The likelihood of that is a mean over its tokens, `weight` of it: its mask says how
    much of the update's own count a token of it is.
    """

    @jax.jit
    def weighed(rows, batch):
        mask, lengths = batch["seqs"].mask, batch["lengths"]
        count = aggregate(mask, mask, lengths, reduce, limit=limit).count
        scored = jnp.sum(jnp.where(rows.positions == 0, 0.0, rows.mask))
        return rows.replace(mask=rows.mask * weight * count / jnp.maximum(scored, 1.0))

    parts = cut(ptx, len(batches))
    row = lambda n: jax.tree.map(lambda x: x[n], parts)
    return [b | {"ptx": weighed(row(n), b)} for n, b in enumerate(batches)]


@cache
def _logps_of(model, temperature):
    return jax.jit(partial(token_logps, model, temperature=temperature))


def _generator(key):
    return np.random.default_rng(np.asarray(jax.random.bits(key, (2,))))
