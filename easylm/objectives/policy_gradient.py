"""Policy gradients on sampled answers: PPO, GRPO and their relatives.

`prepare` samples, scores and turns rewards into advantages (estimates.py). These, and
the old log-probabilities, old values and those of the reference, go into the batches,
so that `loss` is pure.

J answers of this process, N new tokens, R rows, T time.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from easylm.errors import UserError
from easylm.losses import kl as divergences
from easylm.losses import policy_gradient as losses
from easylm.losses.masked import Mean, masked_mean
from easylm.losses.policy_gradient import aggregate, kept
from easylm.models.answers import is_last, token_values
from easylm.models.base import ParamSpec
from easylm.models.heads import likelihood, token_entropy, token_logps
from easylm.objectives import estimates, online
from easylm.objectives.base import NOTHING, Objective, Prepared, bind_loss
from easylm.objectives.estimates import Estimate, estimate, one_of
from easylm.rewards.transforms import updated
from easylm.rollout import packed
from easylm.rollout.rollouts import everywhere

LOSSES = {f.__name__: f for f in (losses.clipped, losses.reinforce, losses.cispo)}
PENALTIES = ("k1", "k2", "k3")  # of the reward, token by token
TERMS = (*PENALTIES, "ratio_k1", "ratio_k3", "chi2")  # of the loss


def make(
    model,
    value=None,
    *,
    loss: str = "clipped",
    level: str = "token",
    reduce: str = "token",
    limit: int | None = None,
    importance_cap: float = 0.0,
    kl_coef: float = 0.05,
    kl_target: float = 0.0,
    kl_horizon: int = 10_000,
    value_weight: float = 0.1,
    value_clip: float = 0.2,
    entropy_weight: float = 0.0,
    ptx_weight: float = 0.0,
    normalize_rewards: bool = False,
    temperature: float = 1.0,
    epochs: int = 1,
    minibatches: int = 1,
    shuffle: bool = True,
    interleaved: bool = False,
    drop_unfinished: bool = False,
    **options,
) -> Objective:
    """A loss of losses/policy_gradient.py by its name, with that function's options.

    level: the ratio is that of the "token", of the "answer" (GSPO), or of the whole
        answer, their product ("sum"). reduce, limit: of `aggregate` in that file.
    advantage: a function of losses/advantages.py, with its ddof, eps, discount and lam;
        gae needs a value model. whitening: of advantages of tokens, over the "batch",
        each "minibatch", or "none", with whiten_eps; whiten_rewards: of rewards, too.
    kl, kl_in: an estimator of losses/kl.py, in the "reward" or in the "loss". With
        kl_target kl_coef follows this KL of an answer, over kl_horizon answers.
    importance_cap: of the weights for what the sampler computes differently.
    ptx_weight: of the likelihood of config.ptx. normalize_rewards: by the mean and
        deviation of all so far. temperature: of the policy that is trained.
    keep, keep_mode: so many answers of each group are trained on (PF-PPO). drop_equal:
        groups whose rewards are equal are not (DAPO), drop_unfinished: nor are answers
        that the limit ended.
    interleaved: old log-probabilities, values, KL, advantages and whitening are those
        of the parameters that the update starts from, and the ratio is always 1: what
        the code of the study did (docs/online_rl.md).
    """
    estimating = Estimate(**estimates.options_of(options))
    options = {k: x for k, x in options.items() if k not in vars(estimating)}
    one = jax.ShapeDtypeStruct((1, 2), jnp.float32)
    loss_of = bind_loss(LOSSES, loss, options, one, one, one)
    valued, kl, kl_in = estimating.valued, estimating.kl, estimating.kl_in
    refers, adaptive = bool(kl_coef), bool(kl_target)
    _check(estimating, value, level, reduce, kl_coef, kl_target, interleaved)
    if reduce == "constant" and not limit:
        raise UserError("reduce='constant' divides by objective.limit; set it")
    spec, fresh = _spec(model, value, valued, adaptive and kl_coef, normalize_rewards)
    logps_of = online.logps_of(model, temperature)
    values_of = jax.jit(partial(token_values, value)) if valued else None
    whitened = jax.jit(estimating.whitened)
    read = _read_by_loss(estimating, refers, interleaved, importance_cap)

    def prepare(params, frozen, batch, key):
        rollout, rows = frozen["rollout"], frozen["rows"]
        policy, memory = online.policy(params), params.get("memory", {})
        running = {"running": memory["rewards"]} if normalize_rewards else {}
        samples = rollout(policy, batch, jax.random.fold_in(key, 0), **running)
        if drop_unfinished:
            samples.there &= samples.finished
        keys = [jax.random.fold_in(key, i) for i in (1, 2)]
        rounds = online.shuffled(samples, keys[0], epochs, minibatches, shuffle)
        with rollout.phases("scoring"):
            laid = [online.lay_out(samples, w, rows, rollout.layout) for w in rounds[0]]
            seen = look(params, frozen, samples, laid)
            again = seen["old_logps"]
            if rollout.temperature != temperature:  # a check of the sampler, not more
                program = online.logps_of(model, rollout.temperature or 1.0)
                program = {"logps": partial(program, policy)}
                again = _read(samples, laid, program)["logps"]
            there = np.flatnonzero(samples.there)
            metrics = online.gap(samples, there, again[there], rollout.max_gap)
            coef = float(memory["kl_coef"]) if adaptive else kl_coef
            found = estimate(estimating, samples, seen, coef, rollout.layout, keys[1])
            metrics |= _metrics(
                samples, seen, found, coef if kl_in == "reward" else 0.0
            )
            metrics["objective/kl_coef"] = Mean(coef, 1.0)
            shown = online.to_read(samples)
            changed = not np.array_equal(found["counts"], samples.there)
            samples.there = found["counts"]
            fields = constants(samples, seen, found)
            ready = []
            for number, parts in enumerate(rounds):
                for part, which in enumerate(parts):
                    made = laid[part]
                    if changed or (number and shuffle):
                        made = online.lay_out(samples, which, rows, rollout.layout)
                    ready.append(one_update(*made, fields))
        if ptx_weight:
            ready = online.mix(ready, batch["ptx"], ptx_weight, reduce, limit)
        metrics = everywhere(samples.metrics | metrics)
        return Prepared(ready, metrics, shown, remember(memory, metrics))

    def look(params, frozen, samples, laid) -> dict:
        """What the models say of the answers before the first update: [J, N] each."""
        programs = {"old_logps": partial(logps_of, online.policy(params))}
        if refers:
            tokens = online.reference(frozen).tokens
            programs["ref_logps"] = lambda seqs: tokens({"seqs": seqs})
        if valued and not interleaved:
            programs["old_values"] = partial(values_of, params["value"])
        return _read(samples, laid, programs)

    def constants(samples, seen, found) -> dict:
        """What the loss reads, of the answers."""
        known = {**seen, **found, "lengths": samples.lengths.astype(np.float32)}
        known["scores"] = samples.rewards
        if importance_cap:
            given = seen["old_logps"], samples.logps
            known["weights"] = np.asarray(losses.importance(*given, cap=importance_cap))
        return {name: known[name] for name in read}

    def blank(params, frozen, seqs):
        del params, frozen
        batch = {"seqs": seqs} | {name: jnp.zeros(seqs.mask.shape) for name in read}
        return batch | ({"ptx": seqs} if ptx_weight else {})

    def one_update(made, there, fields) -> dict:
        batch = online.spread(made, there, fields)
        if estimating.whitening == "minibatch" and not interleaved:
            batch["advantages"] = whitened(batch["advantages"], made.seqs.mask)
        return {"seqs": made.seqs, **batch}

    def remember(memory, metrics) -> dict:
        new = {}
        if adaptive:
            kls = metrics["objective/kl"]
            how = {"target": kl_target, "horizon": kl_horizon, "count": kls.count}
            mean = kls.total / max(kls.count, 1.0)
            new["kl_coef"] = divergences.adaptive(memory["kl_coef"], mean, **how)
        if normalize_rewards:
            total, squares = metrics["rewards/raw"], metrics["rewards/squares"]
            seen = total.count, total.total, squares.total
            new["rewards"] = updated(memory["rewards"], *seen)
        return {"memory": {**memory, **new}} if new else NOTHING

    def measured(params, batch):
        policy, seqs, mask = online.policy(params), batch["seqs"], batch["seqs"].mask
        where = seqs.tokens, seqs.positions, seqs.segments
        hidden, _ = model.forward(policy, *where)
        logps = token_logps(model, policy, seqs, hidden=hidden, temperature=temperature)
        values = token_values(value, params["value"], seqs) if valued else None
        if interleaved:
            batch = batch | recomputed(logps, values, batch)
        logps, old, gained = kept(mask, logps, batch["old_logps"], batch["advantages"])
        mean = partial(online.over_answer, segments=seqs.segments, mask=mask)
        ratio_of = logps
        if level != "token":
            how = partial(mean, total=level == "sum")
            ratio_of = losses.answer_level(logps, old, how)
        each = loss_of(ratio_of, old, gained)
        if importance_cap:
            each = each * kept(mask, batch["weights"])[0]
        metrics = {"policy/loss": masked_mean(each, mask)}
        metrics |= _ratio_metrics(ratio_of, old, gained, mask, options)
        if refers and kl_in == "loss":
            ref = kept(mask, batch["ref_logps"])[0]
            kls = divergence(logps, ref, old, partial(mean, total=True), batch)
            coef = params["memory"]["kl_coef"] if adaptive else kl_coef
            metrics["policy/kl_loss"] = masked_mean(kls, mask)
            each = each + jax.lax.stop_gradient(coef) * kls
        if entropy_weight:
            entropy = token_entropy(model, policy, seqs, hidden, temperature)
            metrics["policy/entropy"] = masked_mean(entropy, mask)
            each = each - entropy_weight * entropy
        if valued:
            given = kept(mask, values, batch["old_values"], batch["returns"])
            error = losses.value_loss(*given, clip=value_clip)
            metrics["value/loss"] = masked_mean(error, mask)
            each = each + value_weight * error
        total = aggregate(each, mask, batch["lengths"], reduce, limit=limit)
        metrics["loss"] = total
        if ptx_weight:
            nll, stats = likelihood(model, policy, batch["ptx"], batch["ptx"].mask)
            metrics["ptx/loss"] = masked_mean(-stats.logps, batch["ptx"].mask > 0)
            total = Mean(total.total + nll, total.count)
        return total, metrics

    def divergence(logps, ref, old, total, batch):
        """The estimate of KL at every token."""
        if kl == "chi2":  # of the answer, shared out over its tokens
            return divergences.chi2(total(logps), total(ref)) / batch["lengths"]
        given = (logps, ref, old) if kl.startswith("ratio") else (logps, ref)
        return getattr(divergences, kl)(*given)

    def recomputed(logps, values, batch) -> dict:
        """What `prepare` does elsewhere, from the parameters of this very update."""
        seqs, mask = batch["seqs"], batch["seqs"].mask
        old, old_values = map(jax.lax.stop_gradient, kept(mask, logps, values))
        ref = kept(mask, batch["ref_logps"])[0] if refers else old
        kls = getattr(divergences, kl)(old, ref)
        last = is_last(seqs)
        rewards = estimating.of_tokens(batch["scores"], kls, last, mask, kl_coef)
        gained, returns = estimating.of_values(rewards, old_values, mask)
        found = {"advantages": estimating.whitened(gained, mask), "returns": returns}
        return found | {"old_logps": old, "old_values": old_values}

    return Objective(
        spec,
        prepare,
        measured,
        reference=refers,
        cacheable=False,
        constant="^memory/" if fresh else "",
        start=lambda params: params | ({"memory": fresh} if fresh else {}),
        online=True,
        updates=epochs * minibatches,
        blank=blank,
        temperature=temperature,
    )


def _read_by_loss(estimating, refers, interleaved, importance_cap) -> list[str]:
    """Names of what the batches hold beside the tokens."""
    found = ["lengths"]
    if refers and (estimating.kl_in == "loss" or interleaved):
        found.append("ref_logps")
    if interleaved:
        return [*found, "scores"]
    found += ["old_logps", "advantages"]
    found += ["old_values", "returns"] * estimating.valued
    return found + ["weights"] * bool(importance_cap)


def _check(estimating, value, level, reduce, kl_coef, kl_target, interleaved) -> None:
    """Choices that do not go together, said before anything is compiled."""
    kls = PENALTIES if estimating.kl_in == "reward" else TERMS
    one_of("level", level, ("token", "answer", "sum"))
    one_of("reduce", reduce, ("token", "answer", "constant"))
    one_of("kl_in", estimating.kl_in, ("reward", "loss"))
    one_of("kl", estimating.kl, kls)
    if estimating.valued and value is None:
        raise UserError("advantage='gae' needs a value model: set config.value")
    if estimating.valued and reduce != "token":
        raise UserError("advantage='gae' is a mean over tokens: set reduce='token'")
    if interleaved and (not estimating.valued or kl_target):
        raise UserError("interleaved is of PPO: advantage='gae', kl_target=0")
    if interleaved and estimating.kl_in != "reward":
        raise UserError("interleaved has the KL in the reward: kl_in='reward'")
    if kl_target and not kl_coef:
        raise UserError("kl_target changes kl_coef, which must not start at 0")


def _spec(model, value, valued, kl_coef, normalize_rewards):
    """All parameters, and the first values of the memory."""
    fresh = {"kl_coef": jnp.float32(kl_coef)} if kl_coef else {}
    fresh |= {"rewards": jnp.zeros(3)} if normalize_rewards else {}
    zeros = jax.nn.initializers.zeros
    memory = {
        name: ParamSpec(x.shape, (None,) * x.ndim, zeros) for name, x in fresh.items()
    }
    spec = model.spec | ({"value": value.spec} if valued else {})
    return spec | ({"memory": memory} if memory else {}), fresh


def _read(samples, laid, programs: dict) -> dict:
    """{name: [J, N]} of programs that take rows of answers."""
    shape = samples.tokens.shape
    found = {name: np.zeros(shape, np.float32) for name in programs}
    for made, there in laid:
        for name, program in programs.items():
            found[name][there] = packed.read(made, program(made.seqs), shape[1])
    return found


def _metrics(samples, seen, found, kl_coef) -> dict:
    there, mask = samples.there, samples.mask
    metrics = online.scores(samples)
    if "ref_logps" in seen:
        metrics |= online.distance(samples, seen["old_logps"], seen["ref_logps"])
    penalty = kl_coef * np.where(mask, found["kl"], 0.0).sum(axis=1)
    metrics |= {
        "objective/non_score_reward": online.mean_of(-penalty, there),
        "objective/rlhf_reward": online.mean_of(samples.rewards - penalty, there),
        "answers/trained": online.mean_of(found["counts"] * 1.0, there),
    }
    if "advantages" in found:
        trained = there & found["counts"]
        size = online.mean_over(np.abs(found["advantages"]), mask, trained)
        metrics["policy/advantage_size"] = size
    if "returns" in found:
        mask = mask & there[:, None]
        metrics |= _value_metrics(seen["old_values"][mask], found["returns"][mask])
    return metrics


def _value_metrics(values, returns) -> dict:
    """explained: 1 - var(returns - values) / var(returns), of the old values."""
    count = float(len(values))
    spread, missed = (float(np.var(x)) * count for x in (returns, returns - values))
    return {
        "value/mean": Mean(float(values.sum()), count),
        "value/returns": Mean(float(returns.sum()), count),
        "value/explained": Mean(spread - missed, max(spread, 1e-12)),
    }


def _ratio_metrics(new, old, gained, mask, options) -> dict:
    change = new - old
    bounds = {name: x for name, x in options.items() if name in ("low", "high")}
    clipped = losses.clip_fraction(new, old, gained, **bounds)
    return {
        "policy/ratio": masked_mean(jnp.exp(jnp.clip(change, -20, 20)), mask),
        "policy/clip_fraction": masked_mean(clipped * 1.0, mask),
        "policy/approx_kl": masked_mean(change**2 / 2, mask),
        "policy/advantage": masked_mean(gained, mask),
    }
