"""What a model is: a tree of `ParamSpec`s and a few pure functions over such trees."""

import difflib
import importlib
import math
import pkgutil
import zlib
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from easylm.errors import UserError
from easylm.sharding import Layout, check_divides


class ParamSpec(NamedTuple):
    """One parameter before it exists. The tree of these gives init, layout and plan."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]  # names of the dimensions, see sharding.RULES
    init: Callable  # (key, shape, dtype) -> array
    dtype: Any = jnp.float32


class Model(NamedTuple):
    """A decoder as pure functions. B rows, T time, D embed, V vocab."""

    config: Any
    spec: dict
    forward: Callable  # (params, tokens, positions, segments, ...) -> hidden, cache
    unembed: Callable  # (params) -> [D, V], the matrix that turns hidden into logits
    init_cache: Callable  # (rows, length) -> cache


def variants() -> dict[str, Any]:
    """Every preset there is: {"llama:3.1-8b": config, ...}."""
    import easylm.models as package

    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        family = importlib.import_module(f"easylm.models.{module.name}")
        presets = getattr(family, "VARIANTS", {})
        found |= {f"{module.name}:{name}": config for name, config in presets.items()}
    return found


def config_for(name: str, **overrides):
    """The configuration of a preset such as "llama:3.1-8b", with fields replaced."""
    known = variants()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or list(known)
        raise UserError(f"no model {name!r}; did you mean {', '.join(near)}?")
    return override(known[name], **overrides)


def override(config, **overrides):
    """`dataclasses.replace` whose error names the nearest field."""
    names = [f.name for f in fields(config)]
    for key in overrides:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.0)[0]
            raise UserError(f"model has no option {key!r}; did you mean {near!r}?")
    return replace(config, **overrides)


def is_spec(x) -> bool:
    return isinstance(x, ParamSpec)


def map_spec(function: Callable, spec):
    return jax.tree.map(function, spec, is_leaf=is_spec)


def init(spec, key, layout: Layout | None = None):
    """Fresh parameters, each drawn from a key folded with its own name.

    One by one: equal shapes share a program, in a model and between models.
    """
    flat = flatten_dict(spec, sep="/")
    where = {} if layout is None else flatten_dict(shardings(spec, layout), sep="/")
    params = {}
    for name, s in flat.items():
        own = jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))
        params[name] = _drawing(s.init, s.shape, s.dtype, where.get(name))(own)
    return unflatten_dict(params, sep="/")


@cache
def _drawing(init, shape, dtype, sharding) -> Callable:
    """The program (key) -> parameter."""
    return jax.jit(lambda key: init(key, shape, dtype), out_shardings=sharding)


def shardings(spec, layout: Layout):
    """The NamedSharding of every parameter; an error names what does not divide."""
    flat = flatten_dict(spec, sep="/")
    for name, s in flat.items():
        for size, axis in zip(s.shape, s.axes, strict=True):
            if axis is not None:
                check_divides(size, axis, layout, f"{axis} of parameter {name}")
    return map_spec(lambda s: layout.sharding(*s.axes), spec)


def abstract(spec, layout: Layout | None = None):
    """ShapeDtypeStructs: what checkpoints restore into and compilers compile for."""
    if layout is None:
        return map_spec(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), spec)
    return jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
        spec,
        shardings(spec, layout),
        is_leaf=is_spec,
    )


def compute_spec(model: Model):
    """The parameters as a frozen model is held: what the computation casts anyway in
    its dtype, norms as they are."""

    def frozen(s: ParamSpec) -> ParamSpec:
        matrix = sum(axis not in ("layers", None) for axis in s.axes) > 1
        return s._replace(dtype=jnp.dtype(model.config.dtype)) if matrix else s

    return map_spec(frozen, model.spec)


def in_compute_dtype(params, model: Model):
    """The parameters of a model that is not trained."""
    spec = compute_spec(model)
    cast = lambda params: jax.tree.map(lambda x, s: x.astype(s.dtype), params, spec)
    return jax.jit(cast)(params)


def count(spec) -> int:
    """How many numbers the parameters hold."""
    return sum(math.prod(s.shape) for s in jax.tree.leaves(spec, is_leaf=is_spec))


def cast(spec, dtype):
    """The same parameters held in another dtype."""
    return map_spec(lambda s: s._replace(dtype=dtype), spec)
