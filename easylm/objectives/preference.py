"""Direct preference learning: the DPO family on packed pairs.

Item i of a row is a pair, the chosen answer before the rejected one; a third answer may
follow for the term that asks for one. B rows, I items per row, K answers of an item,
P = B I pairs.
"""

import inspect
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from easylm import own
from easylm.data import variants
from easylm.data.variants import LEVELS
from easylm.errors import UserError
from easylm.losses import preference as family
from easylm.losses import terms
from easylm.losses.masked import Mean, masked_mean
from easylm.models.answers import (
    answer_lengths,
    answer_logps,
    answer_scores,
    per_answer,
    sum_scored,
)
from easylm.models.heads import token_logps
from easylm.objectives import batch_terms
from easylm.objectives.base import (
    Objective,
    Pairs,
    Prepared,
    bind_loss,
    compare,
    dropout,
    find_loss,
    with_dropout,
)

FAMILY = {
    name: value
    for name, value in vars(family).items()
    if getattr(value, "__module__", "") == family.__name__ and name[0] != "_"
}
REFERENCE_FREE = ("simpo", "orpo", "cpo")  # they do not look at ref_logps
PER_TOKEN = ("dpo_norm", "ipo", "simpo", "orpo")  # their reward is one per token
UNPAIRED = ("kto", "bco")  # an answer counts without its counterpart


def make(
    model,
    *,
    loss: str = "dpo",
    nll_weight: float = 0.0,
    optimism: float = 0.0,
    tail_weight: float = 1.0,
    weigh_by_policy: bool = False,
    beta_gain: float = 0.0,
    beta_target: float = 0.0,
    sync_every: int = 0,
    sync_share: float = 1.0,
    token_weight: float = 0.0,
    degree_weight: float = 0.0,
    policy_temperature: float = 1.0,
    **options,
) -> Objective:
    """A loss of losses/preference.py by its name, or FILE.py:NAME of your own, with
    that function's options.

    nll_weight: of -log p(chosen) per token: RPO (arXiv 2404.19733) and CPO use 1.
    optimism: of beta log(policy / reference) of the third answer, or of the chosen one
        if there is none. SELM (arXiv 2405.19332) and online VPO (arXiv 2405.19320)
        explore with values above 0, offline VPO is cautious with values below.
    tail_weight: of the tokens beyond the length of the shorter answer: LD-DPO (arXiv
        2409.06411); 1 is off.
    weigh_by_policy: a pair counts by how likely the policy is to say it: WPO (arXiv
        2406.11827).
    beta_gain, beta_target: the beta of a batch is beta (1 + gain (mean margin -
        target)): beta-DPO (arXiv 2407.08639), whose target follows the margins; here it
        is a number.
    sync_every, sync_share: every so many updates the reference moves this share of the
        way to the policy: TR-DPO (arXiv 2404.09656); 0 is never.
    token_weight: of what the reference thinks of each token when it is asked for good
        and for bad answers: T-REG (arXiv 2412.02685), with data.variants="contrast".
    degree_weight: of telling how much of the chosen answer is gone: SPO (self-
        supervised preference optimisation), with data.variants="degrees" and a score
        head for it: model.head="both", model.scores=3.
    policy_temperature: of the log-probabilities of policy and reference; those that
        weigh_by_policy looks at stay at 1.
    The mean is over the pairs of the whole batch.
    """
    judge = judging(loss, nll_weight, optimism, **options)
    mismatched = loss == "kto" and "baseline" not in options
    if beta_gain and "beta" not in _arguments(loss):
        raise UserError(f"loss {loss} has no beta for objective.beta_gain to change")
    if degree_weight and (model.config.head, model.config.scores) != ("both", LEVELS):
        fix = f"set config.model.head='both' and config.model.scores={LEVELS}"
        raise UserError(f"degree_weight classifies {LEVELS} degrees; {fix}")
    heated = {"temperature": policy_temperature}
    own = jax.jit(
        lambda p, batch: answer_logps(model, p, batch["seqs"], _shape(batch), **heated)
    )

    def prepare(params, frozen, batch, key):
        _check_answers(_shape(batch)[1], token_weight, degree_weight)
        batch = dict(with_dropout(model, batch, key))
        if tail_weight != 1:
            seqs = batch_terms.lighter_tails(batch["seqs"], _shape(batch), tail_weight)
            batch["seqs"] = seqs
        reference = frozen["reference"].logps if "reference" in frozen else _zeros
        if sync_every:
            reference = partial(own, params["reference"])
        batch["ref_logps"] = reference(batch)
        if token_weight:
            if "reference" not in frozen:
                raise UserError("token_weight asks a frozen reference; give one")
            tokens = frozen["reference"].tokens(batch)
            rewards = batch_terms.contrast(tokens, batch["seqs"], _shape(batch))
            batch |= {"ref_tokens": tokens, "token_rewards": rewards}
        found = constants(params, batch, reference)
        batch.pop("mismatched", None)
        everywhere = jnp.ones(batch["items"].shape)
        spread = {name: value * everywhere for name, value in found.items()}
        return Prepared([batch | {"constants": spread}])

    def constants(params, batch, reference) -> dict:
        """What the loss asks of the whole batch: numbers, or one for each pair."""
        found = {}
        if mismatched:
            other = batch | {"seqs": batch["mismatched"]}
            ratios = own(params, other) - reference(other)
            found["baseline"] = batch_terms.kl(ratios, other)
        if loss == "bco" or beta_gain:
            rewards = judge.beta * (own(params, batch) - batch["ref_logps"])
        if loss == "bco":
            found["baseline"] = batch_terms.mean_reward(rewards, batch)
        if beta_gain:
            above = batch_terms.mean_margin(rewards, batch) - beta_target
            found["beta"] = judge.beta * (1 + beta_gain * above)
        if weigh_by_policy:
            found["weights"] = batch_terms.on_policy(model, params, batch)
        return found

    def judged(params, batch) -> tuple[Pairs, dict[str, Mean]]:
        seqs, shape = batch["seqs"], _shape(batch)
        where = seqs.tokens, seqs.positions, seqs.segments
        hidden, _ = model.forward(params, *where, **dropout(batch))
        tokens = token_logps(model, params, seqs, hidden=hidden, **heated)
        given = sum_scored(tokens, seqs, shape), batch["ref_logps"]
        flat = lambda x: x.reshape(-1, *x.shape[2:])
        given = *map(flat, given), flat(answer_lengths(seqs, shape))
        pairs, metrics = judge(*given, **jax.tree.map(flat, batch["constants"]))
        if token_weight or degree_weight:
            more = flat(further(params, batch, tokens, hidden))
            metrics["terms"] = masked_mean(more, pairs.counts)
            pairs = pairs._replace(loss=pairs.loss + more)
        return pairs, metrics

    def further(params, batch, tokens, hidden):
        """The terms that look into the answers, [B, I]."""
        seqs, shape = batch["seqs"], _shape(batch)
        total = 0.0
        if token_weight:
            ratios, rewards = tokens - batch["ref_tokens"], batch["token_rewards"]
            each = terms.token_regularizer(ratios, rewards, beta=judge.beta)
            each = jnp.where(rewards == 0, 0.0, each)
            total += token_weight * per_answer(each, seqs, shape).sum(axis=-1)
        if degree_weight:
            whole_first = jnp.array([0, *range(2, shape[1])])
            scores = answer_scores(model, params, seqs, shape, hidden=hidden)
            there = answer_lengths(seqs, shape)[..., whole_first] > 0
            each = terms.degree(scores[..., whole_first, :], there)
            total += degree_weight * each
        return total

    def measured(params, batch):
        pairs, metrics = judged(params, batch)
        metrics |= compare(pairs)
        return metrics["loss"], metrics

    objective = Objective(
        model.spec,
        prepare,
        measured,
        unit="pairs",
        pairs=lambda params, batch: judged(params, batch)[0],
        reference=loss not in REFERENCE_FREE,
        cacheable=not (mismatched or token_weight) and tail_weight == 1,
        mismatched=mismatched,
        temperature=policy_temperature,
    )
    return _syncing(objective, sync_every, sync_share) if sync_every else objective


def judging(loss: str, nll_weight=0.0, optimism=0.0, **options) -> Callable:
    """-> judge(logps, ref_logps, lengths [P, K]) -> (Pairs, metrics)."""
    pair = jax.ShapeDtypeStruct((1, 2), jnp.float32)
    function = bind_loss(FAMILY, loss, options, pair, pair, pair)
    beta = options.get("beta", _arguments(loss).get("beta", 1.0))

    def judge(logps, ref_logps, lengths, weights=1.0, **constants):
        third = 2 if logps.shape[1] == 3 else 0
        ratio = logps[:, third] - ref_logps[:, third]
        logps, ref_logps, lengths = logps[:, :2], ref_logps[:, :2], lengths[:, :2]
        tokens = jnp.maximum(lengths, 1.0)  # what is not there divides by 1
        divides = loss in PER_TOKEN or own.is_own(loss)  # a user's may
        lengths_seen = tokens if divides else lengths
        each = weights * function(logps, ref_logps, lengths_seen, **constants)
        nll = -logps[:, 0] / tokens[:, 0]
        rewards = beta * jax.lax.stop_gradient(logps - ref_logps)
        rewards = rewards / tokens if loss in PER_TOKEN else rewards
        some = jnp.any if loss in UNPAIRED else jnp.all
        counts = some(lengths > 0, axis=1).astype(jnp.float32)
        metrics = {"nll": masked_mean(nll, lengths[:, 0] > 0)}
        for column, answer in enumerate(("chosen", "rejected")):
            here = lengths[:, column] > 0
            metrics[f"logps/{answer}"] = masked_mean(logps[:, column], here)
        for name, value in {"weights": weights, **constants}.items():
            if jnp.ndim(value):
                metrics[f"rewards/{name}"] = masked_mean(value, counts)
        each = each + nll_weight * nll + optimism * beta * ratio
        return Pairs(each, counts, rewards, lengths), metrics

    judge.beta = beta
    return judge


def _syncing(objective: Objective, every: int, share: float) -> Objective:
    """The reference is a part of the state, so that it is saved and moves with it."""

    def move(params, step):
        reference, policy = params["reference"], dict(params)
        del policy["reference"]
        mixed = lambda r, p: jnp.where(step % every == 0, r + share * (p - r), r)
        return policy | {"reference": jax.tree.map(mixed, reference, policy)}

    return objective._replace(
        spec=objective.spec | {"reference": objective.spec},
        start=lambda params: params | {"reference": params},
        after=move,
        constant="^reference/",
        reference=False,
    )


def _check_answers(answers: int, token_weight, degree_weight) -> None:
    if answers < 2:
        raise UserError("preference learning takes pairs; set data.answers=2")
    for weight, name in ((token_weight, "contrast"), (degree_weight, "degrees")):
        if weight and answers != 2 + variants.get(name)[1]:
            raise UserError(f"this term is about data.variants={name!r}; set that")


def _shape(batch) -> tuple[int, int]:
    return batch["ratings"].shape[1:3]


def _zeros(batch):
    return jnp.zeros(batch["ratings"].shape[:3])


def _arguments(name: str) -> dict:
    """The options of a loss and their defaults."""
    function = find_loss(FAMILY, name, 3)
    parameters = list(inspect.signature(function).parameters.values())
    return {p.name: p.default for p in parameters[3:]}
