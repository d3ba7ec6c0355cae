"""Preconditioners: what Adafactor and Muon make of a gradient, each layer by itself.

The logical axes of a weight say which of its dimensions are layers, inputs and outputs.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict

from easylm.training.select import map_named


class FactoredState(NamedTuple):
    count: jax.Array
    row: Any  # mean of g² over the outputs, kept as size 1; all of v if not factored
    col: Any  # mean of g² over the inputs, kept as size 1


def scale_by_factored_rms(axes, b2_power, clip_rms, min_dim):
    flat_axes = flatten_dict(axes, sep="/")
    mean = lambda x, dims: x.mean(dims, keepdims=True)

    def dims(name, shape):
        _, inputs, outputs = _matrix(flat_axes[name])
        sides = [math.prod(shape[d] for d in side) for side in (inputs, outputs)]
        # Without outputs, row is all of v and col its mean: row col / mean(row) = v.
        return (inputs, outputs) if min(sides) >= min_dim else (inputs + outputs, ())

    def init(params):
        row = lambda name, p: jnp.zeros_like(mean(p, dims(name, p.shape)[1]))
        col = lambda name, p: jnp.zeros_like(mean(p, dims(name, p.shape)[0]))
        count = jnp.zeros([], jnp.int32)
        return FactoredState(count, map_named(row, params), map_named(col, params))

    def update(grads, state, params=None):
        count = state.count + 1
        b2 = 1 - count.astype(jnp.float32) ** -b2_power

        def average(side):
            return lambda name, g, old: (
                b2 * old + (1 - b2) * mean(g * g + 1e-30, dims(name, g.shape)[side])
            )

        def direction(name, g, row, col):
            inputs, outputs = dims(name, g.shape)
            u = g * jax.lax.rsqrt(row / mean(row, inputs)) * jax.lax.rsqrt(col)
            rms = jnp.sqrt(mean(u * u, inputs + outputs))
            return u / jnp.maximum(1.0, rms / clip_rms)

        row = map_named(average(1), grads, state.row)
        col = map_named(average(0), grads, state.col)
        updates = map_named(direction, grads, row, col)
        return updates, FactoredState(count, row, col)

    return optax.GradientTransformation(init, update)


class MuonState(NamedTuple):
    count: jax.Array
    mu: Any  # momentum, of Muon or of Adam
    nu: Any  # Adam's second moment; all dimensions of size 1 for Muon's matrices


def scale_by_muon(matrix, momentum, steps, scale, b1, b2, eps):
    """`matrix(name)` is (layers, inputs, outputs) dimensions, or None for Adam."""

    def init(params):
        empty = lambda name, p: jnp.zeros((1,) * p.ndim if matrix(name) else p.shape)
        mu = jax.tree.map(jnp.zeros_like, params)
        return MuonState(jnp.zeros([], jnp.int32), mu, map_named(empty, params))

    def update(grads, state, params=None):
        count = state.count + 1
        unbias = lambda x, b: x / (1 - b**count)

        def first(name, g, mu):
            b = momentum if matrix(name) else b1
            return b * mu + (1 - b) * g

        def second(name, g, nu):
            return nu if matrix(name) else b2 * nu + (1 - b2) * g * g

        def direction(name, g, mu, nu):
            if matrix(name):
                ahead = momentum * mu + (1 - momentum) * g
                return _orthogonal(ahead, matrix(name), steps, scale)
            return unbias(mu, b1) / (jnp.sqrt(unbias(nu, b2)) + eps)

        mu = map_named(first, grads, state.mu)
        nu = map_named(second, grads, state.nu)
        updates = map_named(direction, grads, mu, nu)
        return updates, MuonState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def layer_matrix(axes):
    """As `_matrix`; None for vectors, and for weights outside the layers."""
    layers, inputs, outputs = _matrix(axes)
    return (layers, inputs, outputs) if layers and outputs else None


def _matrix(axes):
    """(layers, inputs, outputs) dimensions of a weight; a vector has no outputs.

    What follows "heads" or "kv_heads" belongs to it: [L, embed, heads, head_dim] is a
    matrix per layer, and a bias or norm [L, heads, head_dim] a vector.
    """
    layers = tuple(d for d, name in enumerate(axes) if name == "layers")
    sides = []
    for d, name in enumerate(axes):
        if d > 0 and axes[d - 1] in ("heads", "kv_heads"):
            sides[-1] += (d,)
        elif name != "layers":
            sides.append((d,))
    return (layers, *sides) if len(sides) == 2 else (layers, sum(sides, ()), ())


def _orthogonal(x, dims, steps, scale):
    """Orthogonalise and scale each layer's matrix of x."""
    layers, inputs, outputs = ([x.shape[d] for d in side] for side in dims)
    n, m = math.prod(inputs), math.prod(outputs)
    y = x.reshape(*layers, n, m)  # [L, in, out]
    y = _newton_schulz(y.mT, steps).mT if n > m else _newton_schulz(y, steps)
    size = 0.2 * max(n, m) ** 0.5 if scale == "rms" else max(1.0, m / n) ** 0.5
    return size * y.reshape(x.shape)


def _newton_schulz(x, steps):
    """[..., n, m], n <= m: singular values s -> about 1 by p(s) = a s + b s³ + c s⁵.

    The coefficients are Jordan's, steepest at 0. float32 in and out; the products run
    at the default matmul precision of the device, which the iteration tolerates.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    norm = jnp.sqrt((x * x).sum((-2, -1), keepdims=True))
    x = x / jnp.maximum(norm, 1e-15)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
