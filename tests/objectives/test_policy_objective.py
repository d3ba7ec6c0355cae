"""The wiring of policy gradients, against definitions written out in numpy."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easylm import sharding
from easylm.data.sequences import Sequences
from easylm.errors import UserError
from easylm.models.answers import token_values
from easylm.models.heads import token_logps
from easylm.objectives import online
from tests.objectives import toy

KEY = jax.random.key(7)
PUBLISHED = dict(interleaved=True, shuffle=False, whiten_eps=1e-6, kl_coef=0.3)
GRPO = dict(advantage="group_norm", whitening="none", kl_coef=0.0)


def prepared(objective, state, seed=1, batch=None, **given):
    """The reference is of another seed, so that there is a KL."""
    looked_at = toy.frozen(seed, **given)
    batch = toy.prompts(0) if batch is None else batch
    with sharding.use(toy.one_device()):
        return objective.prepare(state.params, looked_at, batch, KEY)


@lru_cache
def _programs():
    logps = jax.jit(lambda p, seqs: token_logps(toy.model(), p, seqs))
    values = jax.jit(lambda p, seqs: token_values(toy.model("score"), p, seqs))
    return logps, values


def by_answer(seqs, *arrays):
    """Every answer of packed rows alone: [[mask row of array, ...] per answer]."""
    seqs = jax.tree.map(np.asarray, seqs)
    found = []
    for r in range(len(seqs.tokens)):
        for segment in range(1, seqs.segments[r].max(initial=0) + 1):
            at = (seqs.segments[r] == segment) & (seqs.mask[r] > 0)
            whole = seqs.segments[r] == segment
            found.append(
                [seqs.tokens[r][whole], *(np.asarray(x)[r][at] for x in arrays)]
            )
    return found


def alone(program, params, tokens, answer):
    """What a program says of the last `answer` tokens, without packing."""
    ids = np.zeros((1, 16), np.int32)
    ids[0, : len(tokens)] = tokens
    there, places = np.arange(16) < len(tokens), np.arange(16, dtype=np.int32)
    seqs = Sequences(ids, np.float32(there)[None], np.int32(there)[None], places[None])
    return np.asarray(program(params, seqs))[0, len(tokens) - answer : len(tokens)]


def transcribed(answers, scores, kl_coef, discount=1.0, lam=0.95, eps=1e-6):
    """PPO of the study's code, answer by answer: [(logps, ref, values)] -> losses.

    GAE with the score at the last token, whitened over all tokens with n - 1; the
    ratio is 1 and the values are the old ones, so both losses are unclipped.
    """
    gained, returns, values = [], [], []
    for (logps, ref, value), score in zip(answers, scores, strict=True):
        rewards = -kl_coef * (logps - ref)
        rewards[-1] += score
        advantage, ahead = np.zeros(len(value)), 0.0
        for t in reversed(range(len(value))):
            after = value[t + 1] if t + 1 < len(value) else 0.0
            ahead = rewards[t] + discount * after - value[t] + discount * lam * ahead
            advantage[t] = ahead
        gained.append(advantage)
        returns.append(advantage + value)
        values.append(value)
    gained, returns, values = map(np.concatenate, (gained, returns, values))
    white = (gained - gained.mean()) / np.sqrt(gained.var(ddof=1) + eps)
    return white, returns, np.mean(-white), 0.5 * np.mean((values - returns) ** 2)


def test_as_published_is_its_definition_written_out():
    """Loss and gradient of the preset that reproduces the study's code."""
    objective = toy.make(**PUBLISHED)
    state = toy.Learner(objective).start()
    ready = prepared(objective, state)
    [batch] = ready.batches
    logps, values = _programs()
    reference = toy.init(1)
    answers, scores = [], []
    for tokens, score in by_answer(batch["seqs"], batch["scores"]):
        n = len(score)
        policy = online.policy(state.params)
        said = [alone(logps, p, tokens, n) for p in (policy, reference)]
        answers.append((*said, alone(values, state.params["value"], tokens, n)))
        scores.append(score[0])
    assert len(answers) == toy.PROMPTS * toy.GROUP
    white, returns, policy_loss, value_loss = transcribed(answers, scores, 0.3)

    total = lambda p: (lambda m, x: (m.total / m.count, x))(*objective.loss(p, batch))
    (found, metrics), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(
        state.params
    )
    np.testing.assert_allclose(found, policy_loss + 0.1 * value_loss, rtol=2e-4)
    value = metrics["value/loss"].value
    np.testing.assert_allclose(value, value_loss, rtol=2e-4)
    np.testing.assert_allclose(metrics["policy/ratio"].value, 1.0, rtol=1e-6)

    # The gradient is -mean(A grad log pi) + 0.1 mean((V - R) grad V).
    mask = np.asarray(batch["seqs"].mask) > 0
    spread = lambda x: jnp.zeros(mask.shape).at[np.nonzero(mask)].set(x)

    def plain(params):
        seqs = batch["seqs"]
        said = token_logps(toy.model(), online.policy(params), seqs)
        worth = token_values(toy.model("score"), params["value"], seqs)
        squares = 0.5 * (worth - spread(returns)) ** 2
        each = -spread(white) * said + 0.1 * squares
        return jnp.sum(jnp.where(mask, each, 0.0)) / mask.sum()

    expected = jax.jit(jax.grad(plain))(state.params)
    check = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)
    jax.tree.map(check, gradient, expected)


def test_old_log_probabilities_and_values_are_those_of_the_rollout():
    """In every epoch; the advantages are GAE, whitened over the whole batch."""
    objective = toy.make(epochs=2, minibatches=2, kl_coef=0.3)
    learner = toy.Learner(objective)
    state = learner.start()
    ready = prepared(objective, state)
    assert len(ready.batches) == objective.updates == 4
    logps, values = _programs()
    policy, reference = online.policy(state.params), toy.init(1)
    answers, scores, found = [], [], []
    for batch in ready.batches[:2]:
        names = ("old_logps", "old_values", "advantages", "returns")
        parts = by_answer(batch["seqs"], *(batch[name] for name in names))
        for tokens, old, old_values, *gained in parts:
            n = len(old)
            said = alone(logps, policy, tokens, n)
            worth = alone(values, state.params["value"], tokens, n)
            np.testing.assert_allclose(old, said, atol=1e-5)
            np.testing.assert_allclose(old_values, worth, atol=1e-5)
            answers.append((said, alone(logps, reference, tokens, n), worth))
            scores.append(np.mean(tokens[-n:] < toy.GOOD))
            found.append(gained)
    white, returns, *_ = transcribed(answers, scores, 0.3, eps=1e-8)
    np.testing.assert_allclose(np.concatenate([g[0] for g in found]), white, atol=2e-4)
    np.testing.assert_allclose(
        np.concatenate([g[1] for g in found]), returns, atol=2e-4
    )


def test_an_answer_has_the_same_numbers_in_every_epoch():
    """Shuffled anew, in other rows beside other answers."""
    objective = toy.make(epochs=2, minibatches=2, kl_coef=0.3)
    ready = prepared(objective, toy.Learner(objective).start())
    names = ("old_logps", "advantages", "returns", "old_values")

    def numbers(batches):
        parts = [by_answer(b["seqs"], *(b[n] for n in names)) for b in batches]
        flat = [
            np.concatenate([np.ravel(x) for x in a]) for part in parts for a in part
        ]
        return sorted(map(tuple, flat))

    first, second = numbers(ready.batches[:2]), numbers(ready.batches[2:])
    assert first == second
    rows = [np.asarray(b["seqs"].tokens) for b in ready.batches]
    assert not np.array_equal(rows[0], rows[2])


def test_the_clip_binds_in_the_second_update():
    objective = toy.make(epochs=3, kl_coef=0.0)
    _, seen = toy.Learner(objective, lr=0.05).run(iterations=1)
    assert seen[0]["policy/clip_fraction"] > 0.05
    assert seen[0]["policy/approx_kl"] > 1e-3


def test_group_advantages_are_of_the_groups():
    objective = toy.make(**GRPO, shuffle=False)
    ready = prepared(objective, toy.Learner(objective).start())
    [batch] = ready.batches
    parts = by_answer(batch["seqs"], batch["advantages"])
    by_prompt = {}
    for tokens, gained in parts:
        assert np.ptp(gained) == 0  # the same for all tokens of an answer
        score = np.mean(tokens[toy.PROMPT :] < toy.GOOD)
        by_prompt.setdefault(tuple(tokens[: toy.PROMPT]), []).append((score, gained[0]))
    assert len(by_prompt) == toy.PROMPTS
    for pairs in by_prompt.values():
        scores, gained = np.array(pairs).T
        expected = (scores - scores.mean()) / (scores.std(ddof=1) + 1e-4)
        np.testing.assert_allclose(gained, expected, atol=1e-5)


def test_equal_rewards_teach_nothing():
    """And a group of them is left out where that is asked for."""
    same = toy.judged(lambda samples, key: np.ones(len(samples.tokens)))
    for options in (GRPO, GRPO | {"drop_equal": True}):
        objective = toy.make(**options)
        learner = toy.Learner(objective)
        state, seen = learner.run(iterations=1, judge=same)
        np.testing.assert_array_equal(toy.flat(state), toy.flat(learner.start()))
        assert seen[0]["answers/trained"] == (0.0 if "drop_equal" in options else 1.0)


def test_microbatches_and_packing_change_nothing():
    """The gradient of an update is that of its answers, however they lie in rows."""
    objective = toy.make(**GRPO, reduce="answer", minibatches=2, epochs=2)
    learner = toy.Learner(objective)
    whole, seen = learner.run(iterations=2)
    frozen = toy.frozen

    def one_row_each(*args, **given):
        found = frozen(*args, **given)
        return found | {"rows": online.Rows(toy.PROMPT + toy.NEW, 1)}

    toy.frozen = one_row_each
    try:
        apart, again = learner.run(iterations=2)
    finally:
        toy.frozen = frozen
    np.testing.assert_allclose(toy.flat(whole), toy.flat(apart), atol=2e-5)
    assert seen[1]["gold"] == again[1]["gold"]


def test_eight_devices_learn_what_one_learns():
    objective = toy.make(minibatches=2, epochs=2, kl_coef=0.1)
    one, seen = toy.Learner(objective).run(iterations=2)
    layout = sharding.make_layout("fsdp=4,tensor=2")
    eight, also = toy.Learner(objective, layout=layout).run(iterations=2)
    np.testing.assert_allclose(toy.flat(one), toy.flat(eight), atol=5e-4)
    for name in ("gold", "objective/kl", "objective/scores"):
        np.testing.assert_allclose(seen[1][name], also[1][name], atol=1e-4)


def test_the_kl_coefficient_follows_its_target():
    """By how far the KL of an answer is from it, 0.2 at most; it is remembered."""
    objective = toy.make(kl_coef=0.1, kl_target=1e-3, kl_horizon=100)
    state, seen = toy.Learner(objective).run(iterations=3)
    coef = 0.1
    for x in seen:
        assert x["objective/kl_coef"] == pytest.approx(coef, rel=1e-5)
        error = np.clip(x["objective/kl"] / 1e-3 - 1, -0.2, 0.2)
        coef *= 1 + error * toy.PROMPTS * toy.GROUP / 100
    assert seen[0]["objective/kl"] == 0 and seen[2]["objective/kl"] > 1e-3
    assert float(state.params["memory"]["kl_coef"]) == pytest.approx(coef, rel=1e-5)


def test_rewards_are_normalised_by_all_that_were_seen():
    objective = toy.make(**GRPO, normalize_rewards=True)
    rewards = []

    def judge(samples, key, running=None):
        from easylm.losses.masked import Mean

        toy.GOLD(samples, key)
        raw = samples.rewards
        rewards.append(raw)
        samples.metrics["rewards/raw"] = Mean(float(raw.sum()), float(len(raw)))
        squares = float((raw.astype(np.float64) ** 2).sum())
        samples.metrics["rewards/squares"] = Mean(squares, float(len(raw)))
        return samples

    state, _ = toy.Learner(objective).run(iterations=3, judge=judge)
    count, mean, m2 = np.asarray(state.params["memory"]["rewards"])
    every = np.concatenate(rewards)
    assert count == len(every)
    np.testing.assert_allclose(
        [mean, m2 / count], [every.mean(), every.var()], rtol=1e-4
    )


def test_other_text_adds_its_mean_likelihood():
    """PTX: the gradient is the sum of the two, whatever their sizes."""
    plain, mixed = toy.make(**GRPO), toy.make(**GRPO, ptx_weight=0.5)
    text = toy.prompts(3)["seqs"]
    state = toy.Learner(plain).start()
    batch = toy.prompts(0)
    [one] = prepared(plain, state, batch=batch).batches
    [both] = prepared(mixed, state, batch=batch | {"ptx": text}).batches

    def gradient(objective, batch):
        mean = lambda p: (lambda m: m.total / m.count)(objective.loss(p, batch)[0])
        return jax.jit(jax.grad(mean))(state.params)

    def nll(params):
        said = token_logps(toy.model(), params, text)
        return -jnp.sum(said) / (toy.PROMPTS * (toy.PROMPT - 1))

    expected = jax.tree.map(
        lambda a, b: a + 0.5 * b,
        gradient(plain, one),
        jax.jit(jax.grad(nll))(state.params),
    )
    check = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
    jax.tree.map(check, gradient(mixed, both), expected)


def test_a_sampler_that_is_not_the_trainer_stops_the_run():
    objective = toy.make(**GRPO)
    state = toy.Learner(objective).start()
    prepared(objective, state, max_gap=1e-4)
    other = state.replace(params=jax.tree.map(lambda x: x * 1.5, state.params))
    looked_at = toy.frozen(0, max_gap=1e-4)
    sampler = looked_at["rollout"]
    sampled = lambda params, *args, **given: sampler(other.params, *args, **given)
    for name in ("phases", "layout", "max_gap", "temperature"):
        setattr(sampled, name, getattr(sampler, name))
    looked_at["rollout"] = sampled
    error = pytest.raises(UserError, match=r"disagree .* rollout.max_gap is 0.0001")
    with error, sharding.use(toy.one_device()):
        objective.prepare(state.params, looked_at, toy.prompts(0), KEY)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"advantage": "gea"}, "advantage='gea' is not one of gae"),
        ({"advantage": "group_mean", "eps": 0.1}, "has no eps to set"),
        ({"loss": "clip"}, "loss='clip' is not one of clipped"),
        ({"high2": 0.1}, "no option 'high2'"),
        ({"kl": "k4"}, "kl='k4' is not one of k1"),
        ({"kl": "ratio_k1"}, "kl='ratio_k1' is not one of k1"),
        ({"reduce": "answer"}, "set reduce='token'"),
        ({"advantage": "group_mean", "reduce": "constant"}, "objective.limit"),
        ({"kl_target": 6.0, "kl_coef": 0.0}, "must not start at 0"),
        ({"advantage": "group_mean", "interleaved": True}, "interleaved is of PPO"),
        ({"minibatches": 5}, "do not divide into 5 updates"),
    ],
)
def test_what_does_not_go_together_is_said(options, message):
    with pytest.raises(UserError, match=message):
        objective = toy.make(**options)
        state = toy.Learner(objective).start()
        prepared(objective, state)
