"""Reward models: a score for the last token of an answer, learnt from comparisons.

Item i of a row is K answers to one prompt. B rows, I items per row, P = B I items, A
scores of an answer, R ratings of it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from easylm.errors import UserError
from easylm.losses import reward as losses
from easylm.losses.masked import Mean, masked_mean
from easylm.models.answers import answer_lengths, answer_logps, answer_scores
from easylm.objectives.base import (
    Objective,
    Pairs,
    Prepared,
    bind_loss,
    compare,
    dropout,
    with_dropout,
)


class Answers(NamedTuple):
    """What a batch says about its items."""

    scores: jax.Array  # float32[P, K, A]
    ratings: jax.Array  # float32[P, K, R], NaN where unknown
    lengths: jax.Array  # float32[P, K], 0 where there is no answer
    nll: jax.Array  # float32[P], -log p per token of the first answer

    @property
    def there(self):
        return self.lengths > 0


def make(
    model,
    *,
    loss: str = "bradley_terry",
    sft_weight: float = 0.0,
    weights: tuple = (),
    **options,
) -> Objective:
    """A loss of this file by its name, or FILE.py:NAME, with that function's options.

    A reward is the mean of the scores, or their sum with the `weights`. sft_weight: of
    -log p(first answer) per token, as a regulariser (arXiv 2406.10216); it needs
    model.head="both". The mean is over the items of the whole batch.
    """
    config = model.config
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    answers = Answers(shape(1, 2, 1), shape(1, 2, 1), shape(1, 2), shape(1))
    function = bind_loss(LOSSES, loss, options, answers)
    _check(config, sft_weight, weights)
    weights = jnp.asarray(weights or [1 / config.scores] * config.scores)

    def prepare(params, frozen, batch, key):
        del params, frozen
        _check_data(loss, options, config, *batch["ratings"].shape[2:])
        return Prepared([with_dropout(model, batch, key)])

    def read(params, batch) -> Answers:
        seqs, shape = batch["seqs"], batch["ratings"].shape[1:3]
        where = seqs.tokens, seqs.positions, seqs.segments
        hidden, _ = model.forward(params, *where, **dropout(batch))
        lengths = answer_lengths(seqs, shape)
        nll = jnp.zeros(lengths.shape[:2])
        if sft_weight:
            logps = answer_logps(model, params, seqs, shape, hidden=hidden)
            nll = -logps[..., 0] / jnp.maximum(lengths[..., 0], 1.0)
        scores = answer_scores(model, params, seqs, shape, hidden=hidden)
        flat = lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
        return Answers(*map(flat, (scores, batch["ratings"], lengths, nll)))

    def judged(params, batch) -> tuple[Pairs, dict[str, Mean]]:
        answers = read(params, batch)
        each, counts = function(answers)
        rewards = jnp.sum(answers.scores * weights, axis=-1)  # `@` may round
        metrics = {
            "rewards/mean": masked_mean(rewards, answers.there),
            "rewards/square": masked_mean(rewards**2, answers.there),
        }
        if sft_weight:
            metrics["nll"] = masked_mean(answers.nll, answers.there[:, 0])
        ranks = _places(answers) if function.func in PAIRWISE else _ranks(answers)
        each, counts = each + sft_weight * answers.nll, counts.astype(jnp.float32)
        return _pairs(answers, ranks, rewards, each, counts), metrics

    def measured(params, batch):
        pairs, metrics = judged(params, batch)
        metrics |= compare(pairs)
        return metrics["loss"], metrics

    pairs = lambda params, batch: judged(params, batch)[0]
    return Objective(model.spec, prepare, measured, unit="items", pairs=pairs)


# The losses: Answers -> (loss of every item [P], which items say something bool[P]).


def bradley_terry(x: Answers, *, margin=0.0, label_smoothing=0.0, centering=0.0):
    """Of the first answer against the second, for each score as if it were alone.

    The scores should differ by `margin` times the difference of the ratings. centering
    is the weight of (r_c + r_r)^2: 0.01 in arXiv 2312.09244.
    """
    margins = margin * _strength(x) if margin else 0.0

    def one(scores):
        loss = losses.bradley_terry(scores, margins, label_smoothing=label_smoothing)
        return loss + centering * losses.centering(scores)

    return _members(one, x.scores[:, :2]), jnp.all(x.there[:, :2], axis=1)


def scaled_bradley_terry(x: Answers, *, centering=0.0):
    """Bradley-Terry, as many times as the ratings differ by (arXiv 2410.01257)."""
    strength = _strength(x)

    def one(scores):
        loss = losses.scaled_bradley_terry(scores, strength)
        return loss + centering * losses.centering(scores)

    said = jnp.all(x.there[:, :2], axis=1) & (strength > 0)
    return _members(one, x.scores[:, :2]), said


def ranking(x: Answers):
    """All pairs of the K answers, by their first rating, else in their order."""
    ranks = _ranks(x)
    said = jnp.max(ranks, axis=-1) > 1
    return _members(lambda scores: losses.ranking(scores, ranks), x.scores), said


def regression(x: Answers):
    """Squared error of every score to the rating of the same place."""
    known = x.there[..., None] & jnp.isfinite(x.ratings)
    rated = jnp.any(known, axis=-1)
    each = jnp.where(rated, losses.regression(x.scores, x.ratings, known), 0.0)
    count = jnp.sum(rated, axis=-1)
    return jnp.sum(each, axis=-1) / jnp.maximum(count, 1), count > 0


PAIRWISE = (bradley_terry, scaled_bradley_terry)
LOSSES = {f.__name__: f for f in (*PAIRWISE, ranking, regression)}


def _check(config, sft_weight, weights) -> None:
    if config.head == "lm":
        raise UserError("the model has no score head; set config.model.head='score'")
    if sft_weight and config.head != "both":
        raise UserError("sft_weight needs the vocabulary; set config.model.head='both'")
    if weights and len(weights) != config.scores:
        raise UserError(
            f"objective.weights has {len(weights)} numbers, but model.scores is"
            f" {config.scores}; give one for each score"
        )


def _check_data(loss: str, options: dict, config, answers: int, ratings: int) -> None:
    """What the loss reads must be in the data."""
    if loss != "regression" and answers < 2:
        raise UserError(
            f"objective.loss={loss!r} compares answers, but data.answers is {answers};"
            " set data.answers=2, or objective.loss='regression'"
        )
    needed = config.scores if loss == "regression" else 1
    asks = loss in ("regression", "scaled_bradley_terry") or options.get("margin")
    if asks and ratings != needed:
        raise UserError(
            f"objective.loss={loss!r} reads {needed} ratings of each answer, but"
            f" data.ratings is {ratings}; set data.ratings={needed}, with a format that"
            " gives them"
        )


def _members(loss, scores):
    """The mean of the loss over the scores, each as if it were alone."""
    return jnp.mean(jax.vmap(loss, in_axes=-1, out_axes=-1)(scores), axis=-1)


def _strength(x: Answers):
    """By how much the first answer is rated above the second; 0 where unknown."""
    difference = x.ratings[:, 0, 0] - x.ratings[:, 1, 0]
    return jnp.where(jnp.isfinite(difference), difference, 0.0)


def _ranks(x: Answers):
    """1 for the best rated of the answers; equal ratings, equal ranks; 0: none."""
    if not x.ratings.shape[-1]:
        return _places(x)
    value = x.ratings[..., 0]
    there = x.there & jnp.isfinite(value)
    above = (value[:, None, :] > value[:, :, None]) & there[:, None, :]
    return jnp.where(there, 1 + jnp.sum(above, axis=-1), 0)


def _places(x: Answers):
    """Ranks of answers that come best first."""
    return jnp.where(x.there, 1 + jnp.arange(x.there.shape[1]), 0)


def _pairs(x: Answers, ranks, rewards, loss, counts) -> Pairs:
    """All pairs of answers of an item, the better one first; equal ones say nothing."""
    answers = rewards.shape[1]
    if answers == 1:  # nothing to compare
        alone = lambda y: jnp.pad(y, ((0, 0), (0, 1)))
        return Pairs(loss, counts, alone(rewards), alone(x.lengths))
    first, second = jnp.triu_indices(answers, 1)
    swap = ranks[:, first] > ranks[:, second]
    tell = (ranks[:, first] > 0) & (ranks[:, second] > 0)
    tell &= ranks[:, first] != ranks[:, second]

    def columns(y):
        a, b = y[:, first], y[:, second]
        better, other = jnp.where(swap, b, a), jnp.where(swap, a, b)
        return jnp.stack([better, other], axis=-1).reshape(-1, 2)

    spread = lambda y: jnp.repeat(y, len(first))
    lengths = columns(x.lengths) * tell.reshape(-1, 1)
    return Pairs(spread(loss), spread(counts) / len(first), columns(rewards), lengths)
