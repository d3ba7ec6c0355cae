"""A reward model on the mesh: conversations, or the policy's own tokens, to scores.

It is held in the dtype of its computation, split as the rules say, without optimizer.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from easylm import sharding
from easylm.data import chat
from easylm.errors import UserError
from easylm.models import base
from easylm.models.answers import token_scores
from easylm.rollout.packed import agree, lay, plan, read_last, share

ITEMS = 32  # conversations in a row, at most


def at_a_time(rows: int, layout: sharding.Layout) -> int:
    """So many rows or a few more, as many on every device."""
    ways = layout.ways("batch")
    return -(-rows // ways) * ways


class Scorer:
    """scorer(segments) -> float64[n]; of several scores their mean, or `weights`.

    `loaded`: model, params, tokenizer, template and weights of a reward model. `batch`
    rows of `length` tokens are read at a time. What is longer loses its beginning, as
    RewardBench has it.
    """

    def __init__(self, loaded, layout, *, length: int, batch: int, quiet=True):
        config = loaded.model.config
        self.batch, self.length = at_a_time(batch, layout), length
        self.loaded, self._layout, self._quiet = loaded, layout, quiet
        weights = jnp.asarray(loaded.weights or [1 / config.scores] * config.scores)
        self._params = base.in_compute_dtype(loaded.params, loaded.model)
        self._program = jax.jit(partial(token_rewards, loaded.model, weights))

    def __call__(self, segments) -> np.ndarray:
        """Of the conversations of this process: ids and masks, the answer scored."""
        items = [
            [(ids[-self.length :], mask[-self.length :])] for ids, mask in segments
        ]
        rows = plan(items, self.length, ITEMS)
        here = self.batch // self._layout.ways("batch") * share(self._layout)
        scores = np.full(len(segments), np.nan)
        steps = range(0, agree(-(-len(rows) // here)) * here, here)
        with sharding.use(self._layout):
            for first in tqdm(steps, "scoring", disable=True if self._quiet else None):
                part = rows[first : first + here]
                which = [i for row in part for i in row]
                order = dict(zip(which, range(len(which)), strict=True))
                packed = lay(
                    [items[i] for i in which],
                    [[order[i] for i in row] for row in part],
                    self.length,
                    self._layout,
                    step=self.batch,
                    most=ITEMS,
                )
                found = self._program(self._params, packed.seqs)
                scores[which] = read_last(packed, found)
        return scores

    def encode(self, conversations) -> list:
        """Segments of whole conversations."""
        render = chat.get(self.loaded.template)
        tokenizer = self.loaded.tokenizer
        return chat.encode_chats(tokenizer, render, conversations, scored="last")


def token_rewards(model, weights, params, seqs):
    """The weighted sum of the scores at every token, float32[R, T]."""
    hidden, _ = model.forward(params, seqs.tokens, seqs.positions, seqs.segments)
    return jnp.sum(token_scores(params, hidden) * weights, axis=-1)


def of_samples(scorer: Scorer, tokenizer, template: str) -> Callable:
    """-> member(samples, examples) -> float[J], for answers of a policy.

    With the policy's tokenizer and template the very tokens are scored, and what the
    template writes after an end; else the text is written anew in the reward model's
    own, without an end where it has none.
    """
    loaded = scorer.loaded
    same = loaded.template == template and _same(loaded.tokenizer, tokenizer, template)
    after = _after_end(scorer) if same else ()

    def segments(samples, examples):
        which = np.flatnonzero(samples.there)
        if same:
            stops = tokenizer.stop_ids
            return [_with_rest(*samples.segment(j), stops, after) for j in which]
        turns = lambda j: [
            *examples[j // samples.group]["prompt"],
            {"role": "assistant", "content": samples.texts[j]},
        ]
        ready = scorer.encode([turns(j) for j in which])
        stops = loaded.tokenizer.stop_ids
        return [
            segment if samples.finished[j] else _without_end(*segment, stops)
            for j, segment in zip(which, ready, strict=True)
        ]

    def member(samples, examples):
        scores = np.zeros(len(samples.there))
        scores[samples.there] = scorer(segments(samples, examples))
        return scores

    return member


def check(path, loaded, length: int) -> None:
    """UserError if it is no reward model, or reads less than asked."""
    config = loaded.model.config
    if config.head == "lm":
        raise UserError(f"{path} is a language model, it has no score head")
    if not loaded.template:
        raise UserError(f"{path} has no chat template; name one: --template tulu")
    if length > config.max_len:
        raise UserError(f"length {length} is more than the model's {config.max_len}")


PROBE = "What is 3.14 + 2?\n\tdéjà vu — 漢字 {}[];"


def _same(one, other, template: str) -> bool:
    if template == "jinja" and one.chat_template != other.chat_template:
        return False
    return (one.eos, one.encode(PROBE)) == (other.eos, other.encode(PROBE))


def _after_end(scorer) -> np.ndarray:
    """What the template writes after the token that ends a conversation."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    ((ids, _),) = scorer.encode([turns])
    return ids[_end(ids, scorer.loaded.tokenizer.stop_ids) + 1 :]


def _with_rest(ids, mask, stops, rest):
    """What has come to its end goes on as the template does, which is not scored."""
    if ids[-1] not in stops:
        return ids, mask
    return np.concatenate([ids, rest]), np.pad(mask, (0, len(rest)))


def _without_end(ids, mask, stops):
    end = _end(ids, stops)
    return ids[:end], mask[:end]


def _end(ids, stops) -> int:
    """Where the token is that ends a conversation; behind it if there is none."""
    near = range(max(len(ids) - 3, 0), len(ids))
    return next((i for i in near if ids[i] in stops), len(ids))
