"""Preference learning on pairs of the policy's own answers: online DPO, P3O.

`prepare` samples, makes pairs of the answers to a prompt by their rewards, and lays
them out as objectives/preference.py knows them; so every loss of the DPO family learns
on-policy here.

P prompts, G answers to each, C pairs of a group, R rows, I items per row, T time.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from easylm import sharding
from easylm.data.sequences import lay_out, mismatch
from easylm.errors import UserError
from easylm.losses.masked import Mean, masked_mean
from easylm.losses.policy_gradient import p3o, p3o_separate
from easylm.models.answers import answer_lengths, answer_logps, sum_scored
from easylm.objectives import online, preference
from easylm.objectives.base import Objective, Pairs, Prepared, bind_loss, compare
from easylm.rollout import packed
from easylm.rollout.rollouts import everywhere

OF_REWARDS = {"p3o": p3o, "p3o_separate": p3o_separate}
OF_DATA = ("token_weight", "degree_weight")  # they ask for answers nobody sampled


def make(
    model,
    *,
    loss: str = "dpo",
    pairs: str = "extremes",
    kl_coef: float = 0.0,
    temperature: float = 1.0,
    epochs: int = 1,
    minibatches: int = 1,
    shuffle: bool = True,
    **options,
) -> Objective:
    """A loss of losses/preference.py, with the options of objectives/preference.py.

    Online DPO and IPO (arXiv 2402.04792) are loss="dpo" and "ipo" with two answers to a
    prompt. Or p3o, p3o_separate (arXiv 2310.00212), policy gradients of pairs: they
    look at the rewards, not only at their order.

    pairs: "extremes", the best answer of each group against the worst; "neighbours",
        the first against the second, the third against the fourth. Answers with equal
        rewards are no pair, except for p3o, whose rewards the KL tells apart.
    kl_coef: of log(policy / reference) of the answer in the rewards of p3o; the others
        have it in their beta.
    temperature: of the policy whose log-probabilities these are, and of its reference.
    shuffle: pairs are dealt to the minibatches at random; every epoch has the same.

    Constants of a batch (baselines of kto and bco, beta_gain, weigh_by_policy) are
    those of the policy that sampled. `optimism` rewards or punishes what the chosen
    answer has gained on the reference, as SELM and VPO do. It is not XPO (arXiv
    2405.21046): that pairs a sample of the policy with one of the reference, and
    explores by making the latter less likely; here all samples are the policy's.
    """
    if pairs not in PAIRS:
        raise UserError(f"objective.pairs={pairs!r} is not one of {', '.join(PAIRS)}")
    of_rewards = loss in OF_REWARDS
    build = _of_rewards if of_rewards else _of_order
    inner = build(model, loss, kl_coef, temperature, options)
    logps_of = partial(online.logps_of, model)

    def prepare(params, frozen, batch, key):
        rollout, rows = frozen["rollout"], frozen["rows"]
        _check(rollout, rows, batch)
        policy = online.policy(params)
        samples = rollout(policy, batch, jax.random.fold_in(key, 0))
        with rollout.phases("scoring"):
            found, most = make_pairs(samples, pairs, equal=of_rewards)
            order = jax.random.fold_in(key, 1)
            parts = online.dealt(len(found), order, minibatches, shuffle)
            metrics = online.scores(samples) | _about(samples, found)
            batches, kl = [], Mean(0.0, 0.0)
            for number, part in enumerate(parts):
                these, places = found[part], -(-most // minibatches)
                laid, made = _lay_out(
                    samples, these, places, rows, rollout.layout, inner.mismatched
                )
                tokens = logps_of(temperature)(policy, laid["seqs"])
                if number == 0:
                    metrics |= _gap(policy, rollout, samples, these, made, tokens)
                laid["old_tokens"] = tokens
                seed = jax.random.fold_in(key, 2 + number)
                [ready] = inner.prepare(params, frozen, laid, seed).batches
                batches.append(ready)
                kl += _kl(ready, made)
        if "reference" in frozen or "reference" in params:
            metrics["objective/kl"] = kl
        metrics = everywhere(samples.metrics | metrics)
        return Prepared(batches * epochs, metrics, online.to_read(samples))

    def blank(params, frozen, seqs):
        rows, places = len(seqs.tokens), online.SEGMENTS // 2
        laid = {"seqs": seqs, "items": jnp.zeros((rows, places), jnp.int32)}
        laid["scores"] = jnp.zeros((rows, places, 2))
        laid["ratings"] = jnp.zeros((rows, places, 2, 0))
        laid["old_tokens"] = jnp.zeros(seqs.mask.shape)
        if inner.mismatched:
            laid["mismatched"] = seqs
        [batch] = inner.prepare(params, frozen, laid, jax.random.key(0)).batches
        return {name: x for name, x in batch.items() if name != "old_tokens"}

    def _gap(policy, rollout, samples, these, made, tokens) -> dict:
        if rollout.temperature != temperature:  # the sampler's are those of another
            tokens = logps_of(rollout.temperature or 1.0)(policy, made.seqs)
        again = packed.read(made, tokens, samples.tokens.shape[1])
        return online.gap(samples, these.reshape(-1), again, rollout.max_gap)

    def _kl(ready, made) -> Mean:
        """log(policy / reference) of the answers; takes old_tokens out."""
        tokens = ready.pop("old_tokens")
        if "ref_logps" not in ready:
            return Mean(0.0, 0.0)
        old = _sums(tokens, ready["seqs"], (made.items.shape[1], 2))
        host = partial(sharding.to_host, layout=made.layout)
        change = (host(old) - host(ready["ref_logps"]))[made.items >= 0]
        return Mean(float(change.sum()), float(change.size))

    return inner._replace(
        prepare=prepare,
        pairs=None,
        cacheable=False,
        mismatched=False,
        online=True,
        updates=epochs * minibatches,
        blank=blank,
        temperature=temperature,
    )


def extremes(rewards, there):
    """Of equal answers the first is the best, and the last the worst."""
    best = np.argmax(np.where(there, rewards, -np.inf), axis=1)
    worst = np.argmin(np.where(there, rewards, np.inf)[:, ::-1], axis=1)
    return np.stack([best, rewards.shape[1] - 1 - worst], axis=-1)[:, None]


def neighbours(rewards, there):
    """The first and the second, the third and the fourth: whoever is better first."""
    first, second = rewards[:, ::2], rewards[:, 1::2]
    even = 2 * np.arange(first.shape[1])[None]
    return np.stack([even + (second > first), even + (second <= first)], axis=-1)


PAIRS = {f.__name__: f for f in (extremes, neighbours)}  # [P, G] twice -> int[P, C, 2]


def make_pairs(samples, pairs: str, equal: bool) -> tuple[np.ndarray, int]:
    """Numbers of answers int[pairs, 2], the better one first; how many could have been.

    equal: whether two answers with the same reward are a pair.
    """
    group = samples.group
    if pairs == "neighbours" and group % 2:
        raise UserError(
            f"{group} answers are no pairs of neighbours; set rollout.group=2"
        )
    there = samples.there.reshape(-1, group)
    columns = PAIRS[pairs](samples.rewards.reshape(-1, group), there)
    first = group * np.arange(len(columns))
    found = (columns + first[:, None, None]).reshape(-1, 2)
    chosen, rejected = samples.rewards[found].T
    whole = samples.there[found].all(axis=1) & (found[:, 0] != found[:, 1])
    return found[whole & (equal | (chosen > rejected))], len(found)


def _lay_out(samples, these, most, rows, layout, mismatched):
    """A batch as the loader would give it, with `scores` of the answers."""
    items = [[samples.segment(j) for j in pair] for pair in these]
    made = online.in_rows(items, most, rows, layout, answers=2)
    here, shape = made.items >= 0, (*made.items.shape, 2)
    scores = np.zeros(shape, np.float32)
    scores[here] = samples.rewards[these[made.items[here]]]
    place = lambda x, *names: sharding.to_mesh(x, made.rows, layout, *names)
    batch = {"seqs": made.seqs, "items": place(made.items), "scores": place(scores)}
    batch["ratings"] = place(np.zeros((*shape, 0), np.float32))
    if mismatched:
        others = [mismatch([items[i] for i in row[row >= 0]]) for row in made.items]
        others = lay_out(others, rows.length)
        batch["mismatched"] = jax.tree.map(lambda x: place(x, "length"), others)
    return batch, made


def _of_order(model, loss, kl_coef, temperature, options) -> Objective:
    """What learns from which answer is the better one."""
    for name in OF_DATA:
        if options.pop(name, 0.0):
            fix = "use objective.name='preference'"
            raise UserError(f"{name} is about answers made from those of data; {fix}")
    if kl_coef:
        raise UserError(f"kl_coef is of p3o; the KL of {loss} is in its beta")
    return preference.make(model, loss=loss, policy_temperature=temperature, **options)


def _of_rewards(model, loss, kl_coef, temperature, options) -> Objective:
    """P3O: sums over answers of log-probabilities, and rewards less KL."""
    pair = jax.ShapeDtypeStruct((1, 2), jnp.float32)
    function = bind_loss(OF_REWARDS, loss, options, pair, pair, pair)

    def prepare(params, frozen, batch, key):
        del params, key
        shape = batch["ratings"].shape[1:3]
        batch["old_logps"] = _sums(batch["old_tokens"], batch["seqs"], shape)
        batch["rewards"] = batch.pop("scores")
        if kl_coef:
            batch["ref_logps"] = online.reference(frozen).logps(batch)
            change = batch["old_logps"] - batch["ref_logps"]
            batch["rewards"] -= kl_coef * change
        return Prepared([batch])

    def measured(params, batch):
        seqs, shape = batch["seqs"], batch["ratings"].shape[1:3]
        logps = answer_logps(model, params, seqs, shape, temperature=temperature)
        given = logps, batch["old_logps"], batch["rewards"], answer_lengths(seqs, shape)
        logps, old, rewards, lengths = (x.reshape(-1, 2) for x in given)
        counts = jnp.all(lengths > 0, axis=1).astype(jnp.float32)
        metrics = compare(
            Pairs(function(logps, old, rewards), counts, rewards, lengths)
        )
        ratio = jnp.exp(jnp.clip(logps - old, -20.0, 20.0))
        metrics["policy/ratio"] = masked_mean(ratio, lengths > 0)
        metrics["policy/approx_kl"] = masked_mean((logps - old) ** 2 / 2, lengths > 0)
        return metrics["loss"], metrics

    return Objective(
        model.spec, prepare, measured, unit="pairs", reference=bool(kl_coef)
    )


def _about(samples, found) -> dict:
    """How many answers are in pairs, and how far apart their rewards are."""
    chosen, rejected = samples.rewards[found].T
    trained = np.zeros(len(samples.there), bool)
    trained[found] = True
    return {
        "answers/trained": online.mean_of(trained * 1.0, samples.there),
        "objective/margins": Mean(float((chosen - rejected).sum()), float(len(found))),
    }


def _check(rollout, rows, batch) -> None:
    if rollout.group < 2:
        raise UserError("pairs are two answers to a prompt; set rollout.group=2")
    needed = 2 * (batch["seqs"].tokens.shape[1] + rollout.width)
    if rows.length < needed:
        raise UserError(
            f"two prompts and answers may have {needed} tokens together, but a row has"
            f" {rows.length}; set data.length={needed}"
        )


_sums = jax.jit(sum_scored, static_argnums=2)
