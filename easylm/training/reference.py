"""The frozen reference of preference learning: its log-probabilities of the answers.

config.reference.path    "": where the policy starts; a directory; "none": no reference
config.reference.cache   "": computed with every batch; FILE: once, and kept there

The reference is read from the config also when a run is resumed, never taken from the
parameters that are being trained. It has no optimizer state, and is held in the dtype
of the computation. A cache says with which checkpoint, data and template it was made,
and is refused where they differ.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from easylm.data import tokenizer as tokenizers
from easylm.data.loader import place
from easylm.errors import UserError
from easylm.models import base, hf, transformer
from easylm.models.answers import answer_logps
from easylm.models.heads import token_logps
from easylm.sharding import cut
from easylm.training import checkpoint

# Of a model's config, what no log-probability hangs on.
INDIFFERENT = {
    **{"remat": "full", "unroll": 1, "logits_chunk": 1, "param_dtype": ""},
    **{"attention": "auto"},
    **{"lora_alpha": 0.0, "lora_targets": "", "score_std": 0.0},
}
PROBE = "The reference reads: 3.14 + 2 = 5.14, naïve?\n\tdéjà vu — 漢字 {}[];"


class Reference(NamedTuple):
    """What an objective sees of it."""

    logps: Callable  # (batch) -> float32[B, I, K], see models/answers.py
    tokens: Callable | None  # (batch) -> float32[B, T]; None: only a cache is there
    config: Any  # of the model that runs with every batch; None if none does


def make(config, tokenizer, model, layout, temperature=1.0) -> Callable:
    """-> reference(dataset, part), for the data the policy trains or is judged on.

    `part` names that data: with a cache, each has a file of its own.
    """
    model, params = _load(config, tokenizer, model, layout)
    program = jax.jit(partial(item_logps, model, config.microbatches, temperature))
    of_tokens = jax.jit(partial(token_logps, model, temperature=temperature))
    look_up = jax.jit(_look_up)
    checkpoint_mark = cache(partial(fingerprint, params))  # the same for all data

    def logps(batch):
        return program(params, batch)

    def tokens(batch):
        return of_tokens(params, batch["seqs"])

    def reference(dataset, part: str) -> Reference:
        if not config.reference.cache:
            return Reference(logps, tokens, model.config)
        path = epath.Path(config.reference.cache)
        path = path.with_name(f"{path.name.removesuffix('.npz')}-{part}.npz")
        made_with = {
            "model": repr(replace(model.config, **INDIFFERENT)),
            "checkpoint": checkpoint_mark(),
            "data": dataset.identity,
            "template": dataset.rules.encoder.name,
            "temperature": None if temperature == 1 else temperature,
        }
        table = _read(path, made_with)
        if table is None:
            table = _all(logps, dataset.every_item(), layout)
            _write(path, made_with, table)
        table = jax.device_put(table, layout.sharding())
        return Reference(partial(look_up, table), None, None)

    return reference


def fingerprint(params) -> str:
    """The same for the same numbers, however they are laid out over devices."""
    flat = flatten_dict(params, sep="/")
    sums = {name: int(_digest(x)) for name, x in sorted(flat.items())}
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:16]


@jax.jit
def _digest(x):
    """Of every number and its place; integers add up to the same in any order."""
    bits = jax.lax.bitcast_convert_type(x, f"uint{x.dtype.itemsize * 8}")
    where = jnp.zeros((), jnp.uint32)
    for axis in range(x.ndim):
        where = _mix(where + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis))
    return jnp.sum(_mix(bits.astype(jnp.uint32) ^ where), dtype=jnp.uint32)


def _mix(x):
    """A bijection of uint32 whose outputs look random (the finalizer of Murmur 3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def make_model(config, tokenizer, model):
    """The model of the reference, its parameters those of a frozen one."""
    path = config.reference.path
    shape = model.config
    if path:
        shape = replace(
            checkpoint.shape_of(path), **transformer.computation(model.config)
        )
        check_vocabulary(path, shape, model.config, tokenizer)
    plain = transformer.make(replace(shape, lora_rank=0, dropout=0.0))
    return plain._replace(spec=base.compute_spec(plain))


def _load(config, tokenizer, model, layout):
    """The model of the reference and its parameters."""
    path = config.reference.path or config.init
    frozen = make_model(config, tokenizer, model)
    plain = transformer.make(frozen.config)
    key = jax.random.key(config.seed)
    if not path:
        params = base.init(plain.spec, key, layout)
    elif checkpoint.is_workdir(path):
        params = checkpoint.load_params(path, plain, layout, key)
    else:
        params = hf.load(path, frozen, layout, key)
    return frozen, base.in_compute_dtype(params, plain)


def check_vocabulary(path, shape, policy, tokenizer, what="reference") -> None:
    """The same ids must mean the same tokens."""
    if shape.vocab_size != policy.vocab_size:
        raise UserError(
            f"{what} {path} has a vocabulary of {shape.vocab_size}, the policy one of"
            f" {policy.vocab_size}; take a {what} with the policy's tokenizer"
        )
    folder = epath.Path(path) / ("tokenizer" if checkpoint.is_workdir(path) else "")
    if not any((folder / name).exists() for name in tokenizers.FILES[:2]):
        return
    other = tokenizers.load(str(folder))
    if (other.eos, other.encode(PROBE)) != (tokenizer.eos, tokenizer.encode(PROBE)):
        raise UserError(
            f"{what} {path} has another tokenizer than the policy: the same text has"
            f" other ids; take a {what} with the policy's tokenizer"
        )


def item_logps(model, microbatches, temperature, params, batch):
    """Part by part, as the update goes through the batch: as much memory as it."""
    shape = batch["ratings"].shape[1:3]
    one = partial(answer_logps, model, params, shape=shape, temperature=temperature)
    rows = batch["seqs"].tokens.shape[0]
    if microbatches == 1 or rows % microbatches:
        return one(batch["seqs"])
    parts = jax.lax.map(one, cut(batch["seqs"], microbatches))
    return jnp.moveaxis(parts, 0, 1).reshape(rows, *shape)


def _look_up(table, batch):
    items = batch["items"][..., None]
    return jnp.where(items >= 0, table[items[..., 0]], 0.0)


def _all(logps, dataset, layout) -> np.ndarray:
    """The reference's log-probabilities of every item, float32[items, K]."""
    everywhere = jax.jit(lambda x: x, out_shardings=layout.sharding())
    table = None
    for i in range(dataset.one_pass()):
        batch = place(dataset, i, layout)
        items, values = map(np.asarray, everywhere((batch["items"], logps(batch))))
        if table is None:
            table = np.full((len(dataset.table), values.shape[-1]), np.nan, np.float32)
        table[items[items >= 0]] = values[items >= 0]
    return table


def _read(path, made_with: dict) -> np.ndarray | None:
    """The cache, or None if some process has none; another one's is an error."""
    stored, table = made_with, None
    if path.exists():
        with path.open("rb") as file:
            found = np.load(file)
            stored, table = json.loads(str(found["made_with"])), found["table"]
    wrong = [name for name in made_with if stored.get(name) != made_with[name]]
    if wrong:
        raise UserError(
            f"{path} was made with another {' and '.join(wrong)}; remove it, or name"
            " another file in reference.cache"
        )
    have = multihost_utils.process_allgather(np.array(table is not None))
    return table if have.all() else None


def _write(path, made_with: dict, table: np.ndarray) -> None:
    """Written beside its place and moved there: it is whole or not there."""
    if jax.process_index() != 0:
        return
    beside = path.with_name(f"{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside.open("wb") as file:
        np.savez(file, table=table, made_with=json.dumps(made_with))
    beside.rename(path)
