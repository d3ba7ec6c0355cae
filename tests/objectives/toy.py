"""A task of seconds with a known optimum: say only the first quarter of the vocabulary.

A model of one layer answers prompts of three tokens with six; its reward is the share
of tokens that are among the first V / 4. It starts near 1/4, and 1 is the best.
"""

import contextlib
from functools import lru_cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from easylm import sharding
from easylm.data.sequences import Sequences
from easylm.losses.masked import Mean
from easylm.models import base, transformer
from easylm.models.heads import token_logps
from easylm.objectives import base as objectives
from easylm.objectives.online import Rows
from easylm.rollout.rollouts import Rollout
from easylm.training import optimizer, select, setup
from easylm.training.step import init_state, remember, train_step

VOCAB, PROMPT, NEW, PROMPTS, GROUP = 16, 3, 6, 8, 4
GOOD = VOCAB // 4
TOKENIZER = SimpleNamespace(stop_ids=(), decode=str)


@lru_cache
def model(head="lm"):
    shape = dict(vocab_size=VOCAB, dim=16, layers=1, heads=2, kv_heads=2, mlp_dim=32)
    how = dict(dtype="float32", remat="none", head=head)
    return transformer.make(transformer.TransformerConfig(**shape, **how))


@lru_cache
def one_device():
    return sharding.make_layout("data", devices=jax.devices()[:1])


def gold(samples) -> np.ndarray:
    good = (samples.tokens < GOOD) & samples.mask
    return (good.sum(axis=1) / np.maximum(samples.lengths, 1)).astype(np.float32)


def judged(reward):
    """A judge that gives reward(samples, key)."""

    def judge(samples, key, running=None):
        samples.questions = ["?"] * len(samples.prompts)
        samples.rewards = np.float32(reward(samples, key))
        samples.metrics["gold"] = Mean(
            float(gold(samples).sum()), float(len(gold(samples)))
        )
        return samples

    return judge


GOLD = judged(lambda samples, key: gold(samples))


def rollout(judge=GOLD, layout=None, group=GROUP, **options):
    phases = lambda name: contextlib.nullcontext()
    return Rollout(
        model(),
        TOKENIZER,
        judge,
        layout or one_device(),
        phases,
        group=group,
        max_new_tokens=NEW,
        **options,
    )


def prompts(iteration, layout=None, count=PROMPTS):
    """A batch of prompts, as the loader gives it."""
    layout = layout or one_device()
    draw = np.random.default_rng(iteration).integers
    tokens = draw(0, VOCAB, (count, PROMPT)).astype(np.int32)
    ones = np.ones_like(tokens)
    positions = np.tile(np.arange(PROMPT, dtype=np.int32), (count, 1))
    place = lambda x: sharding.to_mesh(x, count, layout)
    seqs = Sequences(tokens, ones.astype(np.float32), ones, positions)
    items = np.arange(count, dtype=np.int32)[:, None]
    return {"seqs": jax.tree.map(place, seqs), "items": place(items)}


def frozen(seed=0, judge=GOLD, layout=None, temperature=1.0, **options):
    """What `prepare` looks at; the reference has the parameters of the seed."""
    layout = layout or one_device()
    params = placed(init(seed), model().spec, layout)
    logps = _reference(temperature)
    reference = SimpleNamespace(tokens=lambda batch: logps(params, batch["seqs"]))
    rows = Rows(4 * (PROMPT + NEW), layout.ways("batch"))
    asked = rollout(judge, layout, temperature=temperature, **options)
    return {"rollout": asked, "rows": rows, "reference": reference}


@lru_cache
def _reference(temperature):
    return jax.jit(partial(token_logps, model(), temperature=temperature))


def init(seed, head="lm"):
    return base.init(model(head).spec, jax.random.key(seed))


def placed(params, spec, layout):
    return jax.device_put(params, base.shardings(spec, layout))


def make(name="policy_gradient", **options):
    valued = name == "policy_gradient" and options.get("advantage", "gae") == "gae"
    value = model("score") if valued else None
    return objectives.make(name, model(), value, **options)


class Learner:
    """The loop of train.py, in a few lines."""

    def __init__(self, objective, lr=0.02, layout=None):
        self.objective, self.layout = objective, layout or one_device()
        spec = objective.spec
        axes = base.map_spec(lambda s: s.axes, spec)
        sections = ({"lr": lr, "schedule": "constant", "warmup": 0.0},) * 2
        made = [optimizer.make(s, total_steps=1000, axes=axes)[0] for s in sections]
        both = setup.apart(*made) if "value" in spec else made[0]
        trained = select.trainable(spec, objective.constant)
        target = setup.abstract_state(spec, both, trained, self.layout)
        self._init = jax.jit(
            partial(init_state, optimizer=both, trainable=trained),
            out_shardings=jax.tree.map(lambda x: x.sharding, target),
        )
        step = partial(
            train_step, loss=objective.loss, optimizer=both, trainable=trained
        )
        self._step = jax.jit(step)

    def start(self, seed=0):
        """Policy, and value model, from the seed."""
        params = init(seed)
        if "value" in self.objective.spec:
            params = params | {"value": init(seed + 1, "score")}
        params = self.objective.start(params)
        return self._init(placed(params, self.objective.spec, self.layout))

    def run(self, seed=0, iterations=10, state=None, first=0, **given):
        """(state, [{metric: value}] of the iterations)."""
        state = self.start(seed) if state is None else state
        seen, looked_at = [], frozen(seed, layout=self.layout, **given)
        with sharding.use(self.layout):
            for i in range(first, first + iterations):
                key = jax.random.fold_in(jax.random.key(seed), i)
                batch = prompts(i, self.layout)
                ready = self.objective.prepare(state.params, looked_at, batch, key)
                state = remember(state, ready.params)
                metrics = {
                    n: m.total / max(m.count, 1e-9) for n, m in ready.metrics.items()
                }
                for part in ready.batches:
                    state, measured = self._step(state, part)
                metrics |= {n: float(m.value) for n, m in measured.items()}
                seen.append(metrics)
        return state, seen


def flat(state):
    """All parameters as one vector."""
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(state.params)])
