"""Prompts of a batch -> answers of the policy, with their rewards, on the host.

Every process has the answers to the prompts that its devices hold. The weights that
sample may lie on the mesh in another way than those that are trained: they are laid out
anew once an iteration.

G answers to each of P prompts that this process holds, J = P G, N new tokens.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from easylm import sharding
from easylm.losses.advantages import informative
from easylm.losses.masked import Mean
from easylm.models import base
from easylm.rollout import stops
from easylm.rollout.packed import agree, share
from easylm.rollout.sampler import Prompts, generate
from easylm.sharding import Layout


@dataclass
class Samples:
    """Answer j is to prompt j // G. What is not there is ignored: it is no answer."""

    items: np.ndarray  # int[P]  number of the prompt in the data set
    prompts: list[np.ndarray]  # [P] of token ids
    tokens: np.ndarray  # int32[J, N]  a stop token counts
    logps: np.ndarray  # float32[J, N]  the sampler's, at its temperature
    lengths: np.ndarray  # int[J]
    finished: np.ndarray  # bool[J]  by a stop, not by the limit
    texts: list[str]  # [J]
    there: np.ndarray  # bool[J]
    questions: list[str] = ()  # [P]  the last turn of the user
    rewards: np.ndarray = None  # float32[J]
    terms: dict = field(default_factory=dict)  # name -> float32[J], before weights
    metrics: dict = field(default_factory=dict)  # name -> Mean

    @property
    def group(self) -> int:
        return len(self.tokens) // len(self.prompts)

    @property
    def mask(self) -> np.ndarray:
        """bool[J, N]: which tokens are there."""
        return np.arange(self.tokens.shape[1]) < self.lengths[:, None]

    def segment(self, j: int) -> tuple[np.ndarray, np.ndarray]:
        """Prompt and answer, the answer scored."""
        prompt, answer = self.prompts[j // self.group], self.tokens[j]
        ids = np.concatenate([prompt, answer[: self.lengths[j]]]).astype(np.int32)
        return ids, np.float32(np.arange(len(ids)) >= len(prompt))


def weights(model, layout: Layout, sampling: Layout) -> Callable | None:
    """-> program(parameters as they are trained) -> as they are sampled from. None
    where both are the same.

    They are cast first, so that half of the bytes travel. Weights that are split along
    `embed` stay so, over other devices, until they are split as they shall be: all of a
    matrix would be gathered for a part of it otherwise.
    """
    if model.config.dtype == model.config.param_dtype and sampling == layout:
        return None
    ways = [layout, sampling]
    between = Layout(sampling.mesh, sampling.rules | {"embed": ("data", "fsdp")})
    divides = model.config.dim % between.ways("embed") == 0
    if sampling != layout and layout.ways("embed") > 1 and divides:
        ways.insert(1, between)
    *ways, there = (base.shardings(model.spec, one) for one in ways)

    def moved(params):
        params = base.in_compute_dtype(params, model)
        for where in ways:
            params = jax.lax.with_sharding_constraint(params, where)
        return params

    return jax.jit(moved, out_shardings=there)


class Rollout:
    """rollout(params, batch, key) -> Samples, with rewards by `judge`.

    group: answers to each prompt. rows: how many decode at a time on all devices.
    rounds: a batch has so many times the prompts of an iteration. The next ones are
    asked as long as groups are missing whose rewards differ, and only such groups are
    there in the end: dynamic sampling (DAPO, arXiv 2503.14476).
    """

    def __init__(
        self,
        model,
        tokenizer,
        judge: Callable,
        layout: Layout,
        phases: Callable,
        *,
        sampling: Layout | None = None,
        group: int = 1,
        rounds: int = 1,
        max_new_tokens: int = 256,
        rows: int | None = None,
        stop_strings: Sequence[str] = (),
        max_gap: float = 0.1,
        **options,
    ):
        self.judge, self.layout, self.phases = judge, layout, phases
        self.group, self.rounds, self.max_gap = group, rounds, max_gap
        self.width = max_new_tokens
        self.temperature = options.get("temperature", 1.0)
        self._tokenizer, self._strings = tokenizer, tuple(stop_strings)
        self._sampling = sampling or layout
        self._parts = layout.ways("batch") // share(layout)
        table = None
        if stop_strings:
            vocab = model.config.vocab_size
            table = stops.stop_table(tokenizer, stop_strings, vocab)
        self._generate = partial(
            generate,
            model,
            max_new_tokens=max_new_tokens,
            rows=rows,
            samples=group,
            stop_ids=tokenizer.stop_ids,
            stop_table=table,
            **options,
        )
        self._weights = weights(model, layout, self._sampling)

    def __call__(self, params, batch, key, **given) -> Samples:
        """The answers to all prompts of the batch."""
        tokens, items = (
            sharding.to_host(x, self.layout)
            for x in (batch["seqs"].tokens, batch["items"][:, 0])
        )
        lengths = sharding.to_host(batch["seqs"].segments, self.layout).sum(axis=1)
        given_prompts = tokens, lengths, items
        if self.rounds == 1:
            return self._answered(params, given_prompts, key, given)
        parts, missing = [], 1
        while missing and len(parts) < self.rounds:
            mine = (x[len(parts) :: self.rounds] for x in given_prompts)
            now = jax.random.fold_in(key, len(parts))
            parts.append(self._answered(params, mine, now, given))
            found = sum(np.count_nonzero(_informative(part)) for part in parts)
            missing = agree(max(len(tokens) // self.rounds - found, 0))
        return _chosen(parts, len(tokens) // self.rounds)

    def _answered(self, params, prompts, key, given) -> Samples:
        samples = self._sample(params, *prompts, key)
        with self.phases("rewards"):
            return self.judge(samples, jax.random.fold_in(key, 1), **given)

    def _sample(self, params, tokens, lengths, items, key) -> Samples:
        began = time.perf_counter()
        bits = np.asarray(jax.random.key_data(key))  # a key belongs to one mesh, too
        # A model may be split over processes here: their prompts come from all of them.
        here, there = (x.sharding("batch") for x in (self.layout, self._sampling))
        with self.phases("rollout"), sharding.use(self._sampling):
            rows = len(tokens) * self._parts
            place = partial(sharding.to_mesh, rows=rows, layout=self.layout)
            prompts = Prompts(place(tokens), place(lengths.astype(np.int32)))
            params = self._weights(params) if self._weights else params
            key = jax.random.wrap_key_data(bits, impl=jax.random.key_impl(key))
            out = self._generate(params, jax.device_put(prompts, there), key)
            host = partial(sharding.to_host, layout=self.layout)
            ids, logps, ends, finished = map(host, jax.device_put(out[:4], here))
        seconds = time.perf_counter() - began
        texts = [
            stops.cut(self._tokenizer, row[:end].tolist(), self._strings)
            for row, end in zip(ids, ends, strict=True)
        ]
        prompts = [row[:end] for row, end in zip(tokens, lengths, strict=True)]
        there = np.repeat(lengths > 0, self.group)
        samples = Samples(
            items, prompts, ids, logps, ends, finished, texts, there=there
        )
        return self._measured(samples, int(out.steps), seconds)

    def _measured(self, samples, steps, seconds) -> Samples:
        there, new = samples.there, float(samples.lengths.sum())
        rows = self._generate.keywords["rows"]  # of all processes
        slots = min(rows // self._parts, len(there)) if rows else len(there)
        samples.metrics = {
            "answers/length": Mean(new, float(there.sum())),
            "answers/finished": Mean(float(samples.finished.sum()), float(there.sum())),
            "rollout/tokens_per_second": Mean(new, seconds / self._parts),
            "rollout/utilisation": Mean(new, float(steps * slots)),
        }
        return samples


def _informative(samples: Samples) -> np.ndarray:
    """bool[P]: the rewards of the group differ."""
    grouped = lambda x: x.reshape(-1, samples.group)
    return np.asarray(informative(grouped(samples.rewards), grouped(samples.there)))


def _chosen(parts: list[Samples], count: int) -> Samples:
    """`count` prompts of all rounds: those that are informative; if they are too few,
    others that are not there."""
    useful = np.concatenate([_informative(part) for part in parts])
    order = np.argsort(~useful, kind="stable")[:count]
    rows = (order[:, None] * parts[0].group + np.arange(parts[0].group)).ravel()
    joined = lambda name: [x for part in parts for x in getattr(part, name)]
    pick = lambda all, which: [all[i] for i in which]
    of_prompts = lambda name: pick(joined(name), order)
    of_answers = lambda name: pick(joined(name), rows)
    arrays = ("tokens", "logps", "lengths", "finished", "there", "rewards")
    chosen = Samples(
        items=np.array(of_prompts("items")),
        prompts=of_prompts("prompts"),
        questions=of_prompts("questions"),
        texts=of_answers("texts"),
        **{name: np.stack(of_answers(name)) for name in arrays},
    )
    chosen.there &= np.repeat(useful[order], chosen.group)
    terms = parts[0].terms
    whole = lambda name: np.concatenate([part.terms[name] for part in parts])
    chosen.terms = {name: whole(name)[rows] for name in terms}
    for part in parts:
        for name, mean in part.metrics.items():
            sums = chosen.metrics.get(name, Mean(0.0, 0.0))
            chosen.metrics[name] = sums + mean
    chosen.metrics["rollout/rounds"] = Mean(float(len(parts)), 1.0)
    chosen.metrics["rollout/informative"] = Mean(
        float(useful.sum()), float(len(useful))
    )
    return chosen


def everywhere(metrics: dict[str, Mean]) -> dict[str, Mean]:
    """Sums over the processes. The same names on all."""
    flat = np.array([[m.total, m.count] for m in metrics.values()], np.float64)
    sums = process_allgather(flat).sum(axis=0)
    return {name: Mean(*row) for name, row in zip(metrics, sums.tolist(), strict=True)}
