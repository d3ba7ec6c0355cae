"""Preference learning on packed pairs: what the batch looks like must not matter."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from easylm import sharding
from easylm.data.sequences import lay_out, mismatch
from easylm.errors import UserError
from easylm.models import base, transformer
from easylm.models.answers import (
    answer_lengths,
    answer_logps,
    answer_scores,
    sum_scored,
)
from easylm.models.heads import token_logps
from easylm.objectives import base as objectives
from easylm.objectives import batch_terms, preference
from easylm.objectives.base import compare
from easylm.training.step import init_state, train_step
from tests import drawn
from tests.objectives.pairs import ITEMS, batch, items, largest

PAIRS = items()
_RNG = np.random.default_rng(1)
NUMBERS = (  # log-probabilities, those of the reference, lengths
    -_RNG.uniform(5, 30, (6, 2)).astype(np.float32),
    -_RNG.uniform(5, 30, (6, 2)).astype(np.float32),
    _RNG.integers(5, 30, (6, 2)).astype(np.float32),
)


@pytest.fixture(scope="module")
def model():
    return transformer.make(base.config_for("llama:tiny", logits_chunk=64))


@pytest.fixture(scope="module")
def params(model):
    """A policy, and a reference that differs from it."""
    return [drawn.params(model.spec, seed) for seed in (0, 1)]


def logps(model, params, made):
    """What a reference says of a batch."""
    shape = made["ratings"].shape[1:3]
    if (id(model), shape) not in PROGRAMS:
        run = lambda params, seqs: answer_logps(model, params, seqs, shape)
        PROGRAMS[id(model), shape] = jax.jit(run)
    return PROGRAMS[id(model), shape](params, made["seqs"])


PROGRAMS = {}


@pytest.fixture(scope="module")
def frozen(model, params):
    return {"reference": SimpleNamespace(logps=partial(logps, model, params[1]))}


@pytest.fixture(scope="module")
def ratios(model, params):
    """A segment -> log(policy / reference) of what it scores, computed alone."""
    run = jax.jit(lambda p, seqs: jnp.sum(token_logps(model, p, seqs) * seqs.mask))

    def ratio(segment):
        seqs = jax.tree.map(jnp.asarray, lay_out([[[segment]]], 32))
        return float(run(params[0], seqs) - run(params[1], seqs))

    return ratio


def measure(objective, params, ready):
    return jax.jit(objective.loss)(params, ready)


def prepared(objective, frozen, made):
    [ready] = objective.prepare(None, frozen, made, jax.random.key(0)).batches
    return ready


def value(objective):
    """-> (params, batch) -> (mean loss, its gradient)."""

    def mean(params, made):
        total, _ = objective.loss(params, made)
        return total.total / total.count

    return jax.jit(jax.value_and_grad(mean))


@pytest.mark.parametrize("name", preference.FAMILY)
def test_places_without_answers_change_no_loss_and_no_gradient(name):
    """For every loss: log-probabilities alone, and scattered among empty places."""
    rng = np.random.default_rng(0)
    logps = -rng.uniform(5, 30, (6, 2)).astype(np.float32)
    ref_logps = logps + rng.normal(0, 1, (6, 2)).astype(np.float32)
    lengths = rng.integers(5, 30, (6, 2)).astype(np.float32)
    places = np.array([0, 3, 4, 7, 8, 10])
    scatter = lambda x: np.zeros((12, 2), np.float32) + _put(places, x)
    judge = preference.judging(name, nll_weight=0.1)

    def mean(logps, ref_logps, lengths):
        pairs, metrics = judge(logps, ref_logps, lengths)
        loss = compare(pairs)["loss"]
        return loss.total / loss.count, metrics | compare(pairs)

    run = jax.value_and_grad(mean, has_aux=True)
    (a, left), da = run(logps, ref_logps, lengths)
    (b, right), db = run(*map(scatter, (logps, ref_logps, lengths)))
    np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(da, db[places], rtol=1e-4, atol=1e-7)
    assert not np.asarray(db)[np.setdiff1d(np.arange(12), places)].any()
    for key, one in left.items():
        np.testing.assert_allclose(one.value, right[key].value, rtol=1e-5, err_msg=key)


def _put(places, x):
    return np.stack(
        [x[list(places).index(i)] if i in places else x[0] * 0 for i in range(12)]
    )


def test_packed_pairs_have_the_loss_and_gradient_of_separate_ones(
    model, params, frozen
):
    objective = preference.make(model, loss="dpo_norm")
    run = value(objective)
    (a, da), (b, db) = (
        run(params[0], prepared(objective, frozen, made))
        for made in (batch(PAIRS), batch(PAIRS, most=1))
    )
    assert abs(a - b) < 1e-5 * max(1, abs(a))
    assert float(optax.tree.norm(da)) > 0
    assert largest(da, db) < 1e-5 * max(1.0, float(optax.tree.norm(da)))


def test_the_loss_is_that_of_the_definition(model, params, frozen, ratios):
    """Log-ratios of each answer alone, summed by hand."""
    beta = 0.3
    each = np.array([[ratios(segment) for segment in item] for item in PAIRS])
    margins = beta * (each[:, 0] - each[:, 1])
    objective = preference.make(model, loss="dpo", beta=beta)
    mean, metrics = measure(
        objective, params[0], prepared(objective, frozen, batch(PAIRS))
    )
    np.testing.assert_allclose(
        mean.value, np.mean(np.log1p(np.exp(-margins))), rtol=1e-5
    )
    assert float(mean.count) == len(PAIRS)
    lengths = [item[0][1].sum() for item in PAIRS]
    for name, expected in {
        "rewards/chosen": np.mean(beta * each[:, 0]),
        "rewards/margins": np.mean(margins),
        "rewards/accuracies": np.mean(margins > 0),
        "lengths/chosen": np.mean(lengths),
    }.items():
        np.testing.assert_allclose(
            metrics[name].value, expected, rtol=1e-4, err_msg=name
        )
    same, zero = measure(
        objective, params[1], prepared(objective, frozen, batch(PAIRS))
    )
    np.testing.assert_allclose(same.value, np.log(2), rtol=1e-6)
    assert abs(float(zero["rewards/margins"].value)) < 1e-5


def test_nll_weight_adds_the_likelihood_of_the_chosen_answer_per_token():
    a, _ = preference.judging("dpo")(*NUMBERS)
    b, metrics = preference.judging("dpo", nll_weight=0.5)(*NUMBERS)
    by_hand = -NUMBERS[0][:, 0] / NUMBERS[2][:, 0]
    np.testing.assert_allclose(b.loss - a.loss, 0.5 * by_hand, rtol=1e-5)
    np.testing.assert_allclose(metrics["nll"].value, np.mean(by_hand), rtol=1e-5)


@pytest.mark.parametrize("name", preference.UNPAIRED)
def test_unpaired_answers_count_by_themselves(name):
    """The loss of pairs is the sum of those of their answers, given one by one."""
    judge = preference.judging(name)
    apart = [np.concatenate([x * [1, 0], x * [0, 1]]) for x in NUMBERS]
    pairs, alone = judge(*NUMBERS)[0], judge(*apart)[0]
    np.testing.assert_allclose(np.sum(pairs.loss), np.sum(alone.loss), rtol=1e-5)
    assert np.sum(alone.counts) == 2 * np.sum(pairs.counts) == 2 * len(pairs.loss)
    assert compare(alone)["rewards/accuracies"].count == 0


def test_microbatches_and_devices_do_not_change_the_update(model, params, frozen):
    objective = preference.make(model, loss="dpo")
    ready = prepared(objective, frozen, batch(items(20)))
    sgd = optax.sgd(0.1)
    trainable = jax.tree.map(lambda _: True, params[0])

    def update(microbatches, mesh, devices):
        layout = sharding.make_layout(mesh, devices=jax.devices()[:devices])
        with sharding.use(layout):
            step = partial(
                train_step,
                loss=objective.loss,
                optimizer=sgd,
                trainable=trainable,
                microbatches=microbatches,
                unit="pairs",
            )
            state = init_state(params[0], sgd, trainable)
            state, measured = jax.jit(step)(
                jax.device_put(state, layout.sharding()),
                jax.device_put(ready, layout.sharding("batch")),
            )
        return jax.device_get((state.params, measured))

    one, measured = update(1, "data", 1)
    assert float(measured["pairs"].total) == 20
    other, also = update(2, "fsdp=2,tensor=2", 4)
    assert largest(one, other) < 1e-5
    for key in ("loss", "rewards/margins"):
        a, b = measured[key], also[key]
        np.testing.assert_allclose(a.total / a.count, b.total / b.count, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(loss="dop"), "'dop' is not one of .*dpo"),
        (dict(loss="orpo", beta=0.1), "loss orpo has no option 'beta'"),
        (dict(loss="robust", label_smoothing=0.5), "not in"),
        (dict(loss="f_dpo", divergence="kl"), "'kl' is not one of"),
    ],
)
def test_wrong_options_are_explained_before_anything_runs(model, options, message):
    with pytest.raises(UserError, match=message):
        objectives.make("preference", model, **options)


def test_an_option_that_is_none_keeps_its_default(model):
    objective = objectives.make("preference", model, loss="dpo_norm", beta=None)
    assert objective.unit == "pairs" and objective.reference


@pytest.mark.parametrize("name", preference.REFERENCE_FREE)
def test_losses_without_a_reference_do_not_ask_for_one(model, name):
    assert not preference.make(model, loss=name).reference
    judge, (logps, ref_logps, lengths) = preference.judging(name), NUMBERS
    with_one, without = (
        judge(logps, ref_logps, lengths),
        judge(logps, logps * 0, lengths),
    )
    np.testing.assert_array_equal(with_one[0].loss, without[0].loss)


# The terms that look at a whole batch.


def test_kto_compares_with_answers_to_other_prompts(model, params, frozen, ratios):
    objective = preference.make(model, loss="kto")
    assert objective.mismatched and not objective.cacheable
    assert not preference.make(model, loss="kto", baseline=0.0).mismatched
    made = batch(PAIRS)
    rows = [[PAIRS[i] for i in row if i >= 0] for row in np.asarray(made["items"])]
    mixed = [mismatch(row) for row in rows]
    made["mismatched"] = jax.tree.map(jnp.asarray, lay_out(mixed, 64))
    by_hand = []
    for row in rows:
        for i, item in enumerate(row if len(row) > 1 else []):
            other = row[(i + 1) % len(row)]
            for (ids, mask), (more, scored) in zip(item, other, strict=True):
                prompt, answer = ids[mask == 0], more[scored > 0]
                mask = np.repeat([0.0, 1.0], [len(prompt), len(answer)])
                by_hand.append(
                    ratios((np.concatenate([prompt, answer]), np.float32(mask)))
                )
    mean = np.mean(by_hand)
    assert abs(mean) > 1e-3
    for sign, (policy, reference) in {1: params, -1: params[::-1]}.items():
        other = {
            "reference": SimpleNamespace(
                logps=lambda b, p=reference: logps(model, p, b)
            )
        }
        [ready] = objective.prepare(policy, other, made, jax.random.key(0)).batches
        z = np.asarray(ready["constants"]["baseline"])
        np.testing.assert_allclose(z, max(sign * mean, 0.0), rtol=1e-3)


def test_batch_terms_by_hand(model, params, frozen, ratios):
    """beta-DPO's beta, BCO's threshold: means over all pairs of the batch."""
    each = 0.1 * np.array([[ratios(segment) for segment in item] for item in PAIRS])
    margin = np.mean(each[:, 0] - each[:, 1])
    tuned = preference.make(model, beta_gain=0.6, beta_target=0.1)
    ready = tuned.prepare(params[0], frozen, batch(PAIRS), jax.random.key(0)).batches[0]
    expected = 0.1 * (1 + 0.6 * (margin - 0.1))
    np.testing.assert_allclose(ready["constants"]["beta"], expected, rtol=1e-4)
    bco = preference.make(model, loss="bco")
    ready = bco.prepare(params[0], frozen, batch(PAIRS), jax.random.key(0)).batches[0]
    np.testing.assert_allclose(ready["constants"]["baseline"], np.mean(each), rtol=1e-3)
    with pytest.raises(UserError, match="loss orpo has no beta"):
        preference.make(model, loss="orpo", beta_gain=0.6)


def test_wpo_weighs_pairs_by_what_the_policy_would_say(model, params, frozen):
    made = batch(PAIRS)
    objective = preference.make(model, weigh_by_policy=True)
    ready = objective.prepare(params[0], frozen, made, jax.random.key(0)).batches[0]
    seqs = made["seqs"]

    @jax.jit
    def run(params):
        hidden, _ = model.forward(params, seqs.tokens, seqs.positions, seqs.segments)
        return (hidden @ model.unembed(params)).astype(jnp.float32)

    logits = np.asarray(run(params[0]))
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    weights = np.ones((8, ITEMS))
    for r, c, k in np.ndindex(8, ITEMS, 2):
        at = np.flatnonzero((seqs.segments[r] == 2 * c + k + 1) & (seqs.mask[r] > 0))
        if len(at):
            said = p[r, at - 1, np.asarray(seqs.tokens)[r, at]]
            weights[r, c] *= np.exp(
                np.mean(np.log(said) - np.log((p[r, at - 1] ** 2).sum(-1)))
            )
    np.testing.assert_allclose(ready["constants"]["weights"], weights, rtol=1e-3)


def test_ld_dpo_counts_tails_less_and_1_is_dpo(model, params, frozen):
    shape = (1, 2)
    [item] = items(1, seed=3)
    seqs = batch([item], rows=1, places=1)["seqs"]
    lighter = batch_terms.lighter_tails(seqs, shape, 0.25)
    short = int(min(mask.sum() for _, mask in item))
    expected = []
    for _, mask in item:
        scored = int(mask.sum())
        prompt = len(mask) - scored
        expected += [0.0] * prompt + [1.0] * short + [0.25] * (scored - short)
    assert lighter.mask[0, : len(expected)].tolist() == expected and 0.25 in expected
    same = batch_terms.lighter_tails(seqs, shape, 1.0)
    np.testing.assert_array_equal(same.mask, seqs.mask)
    assert not preference.make(model, tail_weight=0.5).cacheable


@pytest.mark.parametrize("answers", [2, 3])
def test_optimism_adds_the_ratio_of_the_calibration_answer(answers):
    logps, ref_logps, lengths = (
        np.concatenate([x, x[:, :1] * 2], 1)[:, :answers] for x in NUMBERS
    )
    a, _ = preference.judging("dpo", beta=0.2)(logps, ref_logps, lengths)
    b, _ = preference.judging("dpo", optimism=-0.3, beta=0.2)(logps, ref_logps, lengths)
    column = 2 if answers == 3 else 0
    ratio = (logps - ref_logps)[:, column]
    np.testing.assert_allclose(
        b.loss - a.loss, -0.3 * 0.2 * ratio, rtol=1e-4, atol=1e-6
    )


def test_a_syncing_reference_moves_when_it_is_time(model, params, frozen):
    objective = preference.make(model, sync_every=2, sync_share=0.25)
    start = objective.start(params[0])
    assert largest(start["reference"], params[0]) == 0
    start["reference"] = params[1]
    after = jax.jit(objective.after)
    assert largest(after(start, 1), start) == 0
    moved = after(start, 2)
    expected = jax.tree.map(lambda p, r: 0.25 * p + 0.75 * r, *params)
    assert largest(moved["reference"], expected) < 1e-6
    ready = objective.prepare(start, {}, batch(PAIRS), jax.random.key(0)).batches[0]
    other = frozen["reference"].logps(batch(PAIRS))
    np.testing.assert_allclose(ready["ref_logps"], other, atol=1e-5)


def test_t_reg_rewards_tokens_by_what_contrasting_prompts_make_of_them(model, params):
    """Each token's reward from its answer alone, after each of the three prompts."""
    rng = np.random.default_rng(5)
    answers = [rng.integers(3, 250, n) for n in (4, 6)]
    prompts = [rng.integers(3, 250, n) for n in (3, 5, 7)]
    item = [_joined(p, a) for p in prompts for a in answers]
    other = [_joined(p, a) for p in prompts[::-1] for a in answers]
    item[3] = tuple(x[:-2] for x in item[3])  # cut: its last two tokens have no partner
    made = batch([other, item], rows=1, length=160, places=2)
    run = jax.jit(partial(token_logps, model))
    tokens = run(params[1], made["seqs"])
    found = batch_terms.contrast(tokens, made["seqs"], (2, 6))
    expected = np.zeros_like(found)
    at = 0
    for one in (other, item):
        alone = []
        for ids, mask in one:
            seqs = jax.tree.map(jnp.asarray, lay_out([[[(ids, mask)]]], 160))
            alone.append(np.asarray(run(params[1], seqs))[0, : len(ids)][mask > 0])
        for k, (ids, mask) in enumerate(one):
            if k < 2:
                n = min(len(alone[k + 2]), len(alone[k + 4]))
                gap = alone[k + 2][:n] - alone[k + 4][:n]
                first = at + int(np.argmax(mask > 0))
                expected[0, first : first + n] = 1 / (1 + np.exp(-gap)) - 0.5
            at += len(ids)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected).max() > 1e-3


def _joined(prompt, answer):
    ids = np.concatenate([prompt, answer]).astype(np.int32)
    return ids, np.float32(np.arange(len(ids)) >= len(prompt))


def test_the_terms_add_to_the_loss_what_they_say(params):
    """T-REG: -weight beta sum of r_t log-ratio_t. SPO: a classifier of degrees."""
    config = base.config_for("llama:tiny", logits_chunk=64, head="both", scores=3)
    model = transformer.make(config)
    policy, other = (drawn.params(model.spec, seed) for seed in (0, 1))
    run = jax.jit(partial(token_logps, model))
    made = {
        6: batch(items(2, answers=6), rows=2, length=200),
        4: batch(items(2, answers=4), rows=2, length=200),
    }
    said = SimpleNamespace(
        logps=lambda b: sum_scored(
            run(other, b["seqs"]), b["seqs"], b["ratings"].shape[1:3]
        ),
        tokens=lambda b: run(other, b["seqs"]),
    )
    for places, options in ((6, {"token_weight": 0.7}), (4, {"degree_weight": 0.7})):
        objective = preference.make(model, **options)
        ready = prepared(objective, {"reference": said}, made[places])
        seqs, shape = ready["seqs"], (ITEMS, places)
        there = np.asarray(made[places]["items"]) >= 0
        tokens = run(policy, seqs)
        if places == 6:
            ratios = tokens - ready["ref_tokens"]
            expected = -0.7 * 0.1 * jnp.sum(ready["token_rewards"] * ratios)
        else:
            score = jax.jit(lambda p, seqs: answer_scores(model, p, seqs, (ITEMS, 4)))
            scores = score(policy, seqs)
            logps = jax.nn.log_softmax(scores[..., jnp.array([0, 2, 3]), :])
            right = jnp.diagonal(logps, axis1=-2, axis2=-1)
            expected = -0.7 * jnp.sum(jnp.mean(right, -1) * there)
        loss, metrics = measure(objective, policy, ready)
        np.testing.assert_allclose(metrics["terms"].total, expected, rtol=2e-3)
        sums = [sum_scored(tokens, seqs, shape), ready["ref_logps"]]
        numbers = [x.reshape(-1, places) for x in (*sums, answer_lengths(seqs, shape))]
        plain = compare(preference.judging("dpo")(*numbers)[0])["loss"]
        np.testing.assert_allclose(loss.total, plain.total + expected, rtol=1e-4)
    with pytest.raises(UserError, match="data.variants='contrast'"):
        objective = preference.make(model, token_weight=1.0)
        objective.prepare(policy, {}, batch(PAIRS), jax.random.key(0))
    with pytest.raises(UserError, match="config.model.scores=3"):
        preference.make(
            transformer.make(base.config_for("llama:tiny")), degree_weight=1.0
        )
