"""Expert iteration: sample, keep the best answers to each prompt, and learn them.

Also called rejection sampling fine-tuning (RFT, arXiv 2308.01825), ReST (arXiv
2308.08998), RAFT (arXiv 2304.06767) and, with a KL penalty, SuperHF (arXiv 2310.16763).

J answers, P prompts, G of each, R rows, T time.
"""

import jax
import jax.numpy as jnp
import numpy as np

from easylm.errors import UserError
from easylm.losses import kl as divergences
from easylm.losses.advantages import best
from easylm.losses.masked import Mean, masked_mean
from easylm.losses.policy_gradient import kept
from easylm.models.heads import token_logps
from easylm.objectives import online
from easylm.objectives.base import Objective, Prepared, dropout, with_dropout
from easylm.rollout import packed
from easylm.rollout.rollouts import everywhere

PENALTIES = ("k2", "k3")


def make(
    model,
    *,
    keep: int = 1,
    threshold: float | None = None,
    kl_coef: float = 0.0,
    kl: str = "k2",
    temperature: float = 1.0,
    epochs: int = 1,
    minibatches: int = 1,
    shuffle: bool = True,
) -> Objective:
    """Mean over the tokens of what is kept of -log p + kl_coef KL estimate.

    keep: so many answers to each prompt. threshold: of them only those with a higher
        reward; where no answer is kept there is no gradient.
    kl: "k2" or "k3" of losses/kl.py. The samples are fixed, so only the gradient of the
        estimator itself counts; with d = log(policy / reference) of a token that of the
        loss is grad log p times

            k1   -1 + kl_coef              no penalty, a smaller step
            k2   -1 + kl_coef d            0 at d = 1 / kl_coef: it binds
            k3   -1 + kl_coef (1 - e^-d)   binds only with kl_coef > 1

        Training makes these tokens likelier, d > 0, where k3 flattens out. On samples
        of the policy the gradient of k2 is that of KL(policy, reference). SuperHF takes
        the KL of whole distributions, which asks the reference for the vocabulary.
    temperature: of the policy whose log-probabilities these are, and of its reference.
    shuffle: answers are dealt to the minibatches at random; every epoch has the same.
    """
    if kl not in PENALTIES:
        raise UserError(f"objective.kl={kl!r} has no gradient here; use k2 or k3")
    penalty = getattr(divergences, kl)

    def prepare(params, frozen, batch, key):
        rollout, rows = frozen["rollout"], frozen["rows"]
        samples = rollout(params, batch, jax.random.fold_in(key, 0))
        with rollout.phases("scoring"):
            chosen = _kept(samples, keep, threshold)
            order = jax.random.fold_in(key, 1)
            parts = online.dealt(len(chosen), order, minibatches, shuffle)
            metrics = online.scores(samples) | _about(samples, chosen)
            most = -(-len(samples.prompts) * min(keep, samples.group) // minibatches)
            batches = []
            for number, part in enumerate(parts):
                there = chosen[part]
                items = [[samples.segment(j)] for j in there]
                made = online.in_rows(items, most, rows, rollout.layout)
                if number == 0:
                    logps_of = online.logps_of(model, rollout.temperature or 1.0)
                    again = logps_of(params, made.seqs)
                    again = packed.read(made, again, samples.tokens.shape[1])
                    metrics |= online.gap(samples, there, again, rollout.max_gap)
                ready = {"seqs": made.seqs}
                if kl_coef:
                    ready["ref_logps"] = online.reference(frozen).tokens(ready)
                seed = jax.random.fold_in(key, 2 + number)
                batches.append(with_dropout(model, ready, seed))
        metrics = everywhere(samples.metrics | metrics)
        return Prepared(batches * epochs, metrics, online.to_read(samples))

    def blank(params, frozen, seqs):
        del params, frozen
        batch = {"seqs": seqs}
        if kl_coef:
            batch["ref_logps"] = jnp.zeros(seqs.mask.shape)
        return with_dropout(model, batch, jax.random.key(0))

    def measured(params, batch):
        seqs, mask = batch["seqs"], batch["seqs"].mask
        logps = token_logps(
            model, params, seqs, temperature=temperature, **dropout(batch)
        )
        [logps] = kept(mask, logps)
        each, metrics = -logps, {"nll": masked_mean(-logps, mask)}
        if kl_coef:
            kls = penalty(logps, *kept(mask, batch["ref_logps"]))
            metrics["kl/loss"] = masked_mean(kls, mask)
            each = each + kl_coef * kls
        total = masked_mean(each, mask)
        return total, metrics | {"loss": total}

    return Objective(
        model.spec,
        prepare,
        measured,
        reference=bool(kl_coef),
        cacheable=False,
        online=True,
        updates=epochs * minibatches,
        blank=blank,
        temperature=temperature,
    )


def _kept(samples, keep, threshold) -> np.ndarray:
    """Numbers of the answers to train on."""
    grouped = lambda x: x.reshape(-1, samples.group)
    chosen = best(grouped(samples.rewards), grouped(samples.there), keep)
    chosen = np.asarray(chosen).reshape(-1) > 0
    if threshold is not None:
        chosen &= samples.rewards > threshold
    return np.flatnonzero(chosen)


def _about(samples, chosen) -> dict:
    """How many answers are kept, and how good they are."""
    rewards = samples.rewards[chosen]
    return {
        "answers/trained": Mean(float(len(chosen)), float(samples.there.sum())),
        "objective/kept": Mean(float(rewards.sum()), float(len(chosen))),
    }
