"""A tiny policy that answers, a judge that counts, and updates, for online runs."""

from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from easylm import sharding
from easylm.data.sequences import Sequences, lay_out
from easylm.models import base, transformer
from easylm.models.answers import answer_logps
from easylm.models.heads import token_logps
from easylm.objectives.online import Rows
from easylm.rollout.rollouts import Rollout
from easylm.training.progress import Phases
from easylm.training.step import init_state, train_step

PROMPTS, GROUP, PROMPT, NEW, LENGTH = 16, 4, 4, 6, 128
TEMPERATURE = 0.7
MODEL = transformer.make(base.config_for("llama:tiny", layers=1, logits_chunk=512))
LAYOUT = sharding.make_layout("data", devices=jax.devices()[:1])
KEY = jax.random.key(0)


class Ids:
    """As much of a tokenizer as ids need that nobody reads. 0 to 9 end an answer."""

    stop_ids = tuple(range(10))
    decode = staticmethod(str)


@cache
def init(seed=0):
    return base.init(MODEL.spec, jax.random.key(seed), LAYOUT)


def prompts(count=PROMPTS, seed=0):
    """A batch of prompts of 2 to 4 tokens, as the loader would give it."""
    rng = np.random.default_rng(seed)
    there = np.arange(PROMPT) < rng.integers(2, PROMPT + 1, count)[:, None]
    tokens = np.where(there, rng.integers(10, 256, there.shape), 0).astype(np.int32)
    positions = np.where(there, np.arange(PROMPT), 0).astype(np.int32)
    seqs = Sequences(tokens, np.float32(there), np.int32(there), positions)
    batch = {"seqs": seqs, "items": np.arange(count, dtype=np.int32)[:, None]}
    return jax.tree.map(lambda x: sharding.to_mesh(x, count, LAYOUT), batch)


def low_ids(samples):
    """The reward is the share of the answer's ids that are below 64: 1/4 by chance."""
    share = np.where(samples.mask, samples.tokens < 64, 0).sum(axis=1)
    return share / samples.lengths


def nothing(samples):
    return np.zeros(len(samples.tokens))


def frozen(reference=None, reward=low_ids):
    """What `prepare` looks at, and a list in which the samples can be seen."""
    seen = []

    def judge(samples, key):
        samples.rewards = np.float32(reward(samples))
        samples.questions = [""] * len(samples.prompts)
        seen.append(samples)
        return samples

    options = {"max_new_tokens": NEW, "temperature": TEMPERATURE, "max_gap": 1e-4}
    rollout = Rollout(MODEL, Ids(), judge, LAYOUT, Phases(), group=GROUP, **options)
    found = {"rollout": rollout, "rows": Rows(LENGTH, 1)}
    if reference is not None:
        logps, tokens = (partial(f, reference) for f in (_logps, _tokens))
        found["reference"] = SimpleNamespace(logps=logps, tokens=tokens)
    return found, seen


@jax.jit
def _logps(params, batch):
    shape = batch["ratings"].shape[1:3]
    return answer_logps(MODEL, params, batch["seqs"], shape, temperature=TEMPERATURE)


@jax.jit
def _tokens(params, batch):
    return token_logps(MODEL, params, batch["seqs"], temperature=TEMPERATURE)


def alone(samples, numbers):
    """(params) -> log-probabilities [n, T] of answers in rows of their own; mask."""
    rows = [[[samples.segment(j)]] for j in numbers]
    seqs = jax.tree.map(jnp.asarray, lay_out(rows, PROMPT + NEW))
    logps = lambda p: token_logps(MODEL, p, seqs, temperature=TEMPERATURE)
    return logps, seqs.mask


def value(objective, params, batch):
    """(mean loss, its metrics), gradient."""
    with sharding.use(LAYOUT):
        return _value(objective.loss)(params, batch)


@cache
def _value(loss):
    def mean(params, batch):
        total, metrics = loss(params, batch)
        return total.value, metrics

    return jax.jit(jax.value_and_grad(mean, has_aux=True))


def prepare(objective, params, found, seed=0):
    with sharding.use(LAYOUT):
        return objective.prepare(params, found, prompts(seed=seed), KEY)


def learn(objective, params, found, iterations, lr):
    """The mean reward of each iteration."""
    optimizer = optax.adam(lr)
    everything = jax.tree.map(lambda _: True, params)
    state = init_state(params, optimizer, everything)
    state = jax.device_put(state, LAYOUT.sharding())  # where a step leaves it
    options = {"optimizer": optimizer, "trainable": everything, "unit": objective.unit}
    step = jax.jit(partial(train_step, loss=objective.loss, **options))
    rewards = []
    with sharding.use(LAYOUT):
        for i in range(iterations):
            now = jax.random.fold_in(KEY, i)
            ready = objective.prepare(state.params, found, prompts(seed=i), now)
            for batch in ready.batches:
                state, _ = step(state, batch)
            rewards.append(float(ready.metrics["objective/scores"].value))
    return rewards
