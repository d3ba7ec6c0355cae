"""Prompts to completions: prefill, then decode, in one compiled program (loop.py).

B prompts, P prompt length.
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from easylm import sharding
from easylm.errors import UserError
from easylm.models.base import Model
from easylm.rollout import loop, stops
from easylm.rollout.loop import Completions, Options
from easylm.rollout.sampling import check

BUCKET = 64  # lengths are rounded up to it, so that few programs are compiled


class Prompts(NamedTuple):
    """Rows that begin with a prompt; a row of length 0 stays empty."""

    tokens: jax.Array  # int32[B, P]
    lengths: jax.Array  # int32[B]


def generate(model: Model, params, prompts: Prompts, key, **options) -> Completions:
    """Samples completions of each prompt; those of one prompt are adjacent.

    `key` is one key, or one per prompt: then a prompt gets the same samples in any
    batch. The options are those of `ready`. Runs on the mesh of `sharding.use`, however
    params are laid out.
    """
    made = ready(model, prompts, key, **options)
    with made.mesh():
        out = made.program(params, *made.arguments)
    end = slice(options["max_new_tokens"])
    return out._replace(tokens=out.tokens[:, end], logps=out.logps[:, end])


class Ready(NamedTuple):
    """A compiled function and what it takes beside the parameters."""

    program: Callable
    arguments: tuple
    layout: sharding.Layout | None

    def mesh(self):
        layout = self.layout
        return contextlib.nullcontext() if layout is None else sharding.use(layout)


def ready(
    model: Model,
    prompts: Prompts,
    key,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop_ids: Sequence[int] = (),
    stop_table=None,
    samples: int = 1,
    rows: int | None = None,
) -> Ready:
    """What `generate` runs: `samples` completions of each prompt.

    `rows`: how many decode at a time; None for all. `stop_table` comes from
    `stops.stop_table`; `sampling.sample` explains the other options.
    """
    tokens, lengths = prompts
    check(temperature, top_k, top_p, min_p)
    rows = min(rows or tokens.shape[0] * samples, tokens.shape[0] * samples)
    if max_new_tokens < 1 or samples < 1 or tokens.shape[1] < 1 or rows < 1:
        raise UserError(
            f"max_new_tokens {max_new_tokens}, samples {samples}, rows {rows} and"
            f" prompt length {tokens.shape[1]} must be 1 or more"
        )
    sizes = samples, rows, _up(max_new_tokens)
    options = Options(temperature, top_k, top_p, min_p, *sizes)
    blank = ((0, 0), (0, -tokens.shape[1] % BUCKET))
    tokens = (np if isinstance(tokens, np.ndarray) else jnp).pad(tokens, blank)
    ids = np.full(_up(max(1, len(stop_ids)), 4), -1, np.int32)
    ids[: len(stop_ids)] = stop_ids
    table = np.zeros((2, 1), np.int32) if stop_table is None else stop_table
    layout = sharding.current()
    if layout is not None:
        sharding.check_divides(tokens.shape[0], "batch", layout, "prompts")
        sharding.check_divides(rows, "batch", layout, "rows that decode at a time")
        # One new token at a time cannot be split along time.
        layout = layout._replace(rules={**layout.rules, "length": ()})
    program = _program(model._replace(spec=None), options, _hashable(layout))
    limit = np.int32(max_new_tokens)
    return Ready(program, (tokens, lengths, key, limit, ids, table), layout)


def complete(
    model: Model,
    params,
    tokenizer,
    prompts: list[list[int]],
    key,
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int] | None = None,
    stop_strings: Sequence[str] = (),
    samples: int = 1,
    **options,
) -> list[dict]:
    """`generate` from lists of ids to text, on the host.

    One {"text", "tokens", "logps", "finished"} per sample. It stops at the tokenizer's
    `stop_ids` unless others are given; no stop is part of the text.
    """
    _check_ids(prompts, model.config, max_new_tokens)
    table = None
    if stop_strings:
        table = stops.stop_table(tokenizer, stop_strings, model.config.vocab_size)
    out = generate(
        model,
        params,
        pad(prompts, rows=_rows(len(prompts))),
        key,
        max_new_tokens=max_new_tokens,
        stop_ids=tokenizer.stop_ids if stop_ids is None else stop_ids,
        stop_table=table,
        samples=samples,
        **options,
    )
    out = jax.tree.map(np.asarray, out)
    found = []
    for row in range(len(prompts) * samples):
        end = out.lengths[row]
        ids = out.tokens[row, :end].tolist()
        found.append(
            {
                "text": stops.cut(tokenizer, ids, stop_strings),
                "tokens": ids,
                "logps": out.logps[row, :end].tolist(),
                "finished": bool(out.finished[row]),
            }
        )
    return found


def pad(prompts: Sequence[Sequence[int]], rows: int = 0) -> Prompts:
    """Lists of ids as one array, with empty rows up to `rows`."""
    rows = max(rows, len(prompts))
    lengths = np.zeros(rows, np.int32)
    lengths[: len(prompts)] = [len(ids) for ids in prompts]
    tokens = np.zeros((rows, max(1, lengths.max(initial=0))), np.int32)
    for row, ids in enumerate(prompts):
        tokens[row, : len(ids)] = ids
    return Prompts(tokens, lengths)


@lru_cache(maxsize=64)
def _program(model: Model, options: Options, layout):
    """One compiled function per model, options and layout (which tracing looks up)."""
    out = None if layout is None else sharding.current().sharding()
    return jax.jit(partial(loop.run, model, options), out_shardings=out)


def _up(length: int, bucket: int = BUCKET) -> int:
    return -(-length // bucket) * bucket


def _rows(count: int) -> int:
    """How many prompts the mesh asks for."""
    return _up(count, sharding.ways("batch"))


def _hashable(layout):
    return None if layout is None else (layout.mesh, tuple(layout.rules.items()))


def _check_ids(prompts, config, max_new_tokens: int) -> None:
    for row, ids in enumerate(prompts):
        if not len(ids):
            raise UserError(f"prompt {row} is empty; begin it with the BOS token, say")
        if wrong := [i for i in ids if not 0 <= i < config.vocab_size]:
            raise UserError(
                f"prompt {row} has token id {wrong[0]}, outside of the model's"
                f" vocabulary of {config.vocab_size}; use the tokenizer of the model"
            )
        if len(ids) + max_new_tokens > config.max_len:
            raise UserError(
                f"prompt {row} has {len(ids)} tokens; with max_new_tokens"
                f" {max_new_tokens} that is more than the model's {config.max_len}"
                " positions; shorten one of the two"
            )
