"""What a run is made of: its programs, what they are given, and how large that is."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from easylm.models import base
from easylm.sharding import Layout
from easylm.training.optimizer import HOST

PARAMETERS, OPTIMIZER, FROZEN, SAMPLER = "parameters", "optimizer", "frozen", "sampler"
HELD = (PARAMETERS, OPTIMIZER, FROZEN)  # from the first iteration to the last
TRAIN, ROLLOUT, WEIGHTS = "train step", "rollout", "weights"  # programs of their own


class Argument(NamedTuple):
    """Arrays that a program is given, and what they are."""

    kind: str
    tree: Any  # of ShapeDtypeStruct


class Program(NamedTuple):
    """One compiled function of the run."""

    name: str
    function: Callable  # jitted
    arguments: tuple[Argument, ...]
    layout: Layout
    times: float = 1.0  # in an iteration
    tokens: int = 0  # that it works on, prompts and answers
    gives: tuple[Argument, ...] = ()  # what it leaves for the next one
    trips: int = 1  # of a loop that ends when it is done, at most

    @property
    def trees(self) -> tuple:
        return tuple(argument.tree for argument in self.arguments)


class Run(NamedTuple):
    """All of it."""

    programs: tuple[Program, ...]  # of an iteration, the train step last
    held: dict[str, tuple[Argument, ...]]  # name -> what is held all the time
    models: tuple[base.Model, ...]  # that are trained: the policy, and its value model
    tokens: int  # trained on in an iteration
    iterations: int | None  # None where only the data would tell
    microbatches: int
    slots: int  # of the cache, of all rows that decode at a time
    flops: float  # that the model needs for all updates of an iteration


def bytes_of(arguments, *, host: bool = False) -> int:
    """On one device; or what it has in the memory of its host."""
    found = [x for a in arguments for x in jax.tree.leaves(a.tree)]
    return sum(_bytes(x) for x in found if _on_host(x) == host)


def _on_host(x) -> bool:
    return bool(x.sharding) and x.sharding.memory_kind == HOST


def _bytes(x) -> int:
    shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
    size = 4 if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize
    return math.prod(shape) * size
