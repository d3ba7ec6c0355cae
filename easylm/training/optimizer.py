"""Optimizers, and which parameters they touch, chosen by parameter name.

A name is a "/"-joined path (`layers/attn/q`). `axes` is the tree of logical axes, one
tuple per parameter: it says which dimensions of a weight are layers, inputs, outputs.
Parameters that are not trained are taken out with `partition` before an optimizer sees
them, so they have no state, no share in the gradient norm and no decay.

An optimizer is a public function here whose first argument is `lr`, a number or a
schedule. Whatever the parameters' dtype, it computes and keeps its state in float32.
The update of every one is `-lr * (direction + decay * p)`, with no `decay * p` for
names in which the regular expression `decay_mask` is found.
"""

import difflib
import inspect
import math
import re
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from easylm.errors import UserError
from easylm.training import schedules

# Norms, biases and input embeddings; the unembedding is decayed like a matrix.
NOT_DECAYED = r"norm|bias|\bembed\b"


def make(config, *, total_steps, axes):
    """(optimizer, schedule) from a config section.

    `name` (adamw), `lr`, `schedule` (linear), `warmup` (0.03: a fraction of the run if
    below 1, else updates), `clip` (1.0: largest global gradient norm, 0 is off), and
    any keyword of the chosen optimizer or schedule. None keeps a default.
    """
    defaults = {"name": "adamw", "schedule": "linear", "warmup": 0.03, "clip": 1.0}
    settings = defaults | {k: v for k, v in config.items() if v is not None}
    optimizer = _find(sys.modules[__name__], "lr", "name", settings["name"])
    schedule = _find(schedules, "peak", "schedule", settings["schedule"])
    _check_keys(config, [*defaults, "lr"], optimizer, schedule)
    if "lr" not in settings:
        raise UserError("optimizer.lr is missing; state the peak learning rate")
    if settings.get("decay_mask"):
        _matching(settings["decay_mask"], flatten_dict(axes, sep="/"), "decay_mask")

    keywords = lambda f: {k: settings[k] for k in _keywords(f) if k in settings}
    warmup = _warmup_steps(settings["warmup"], total_steps)
    lr = schedule(settings["lr"], total_steps, warmup, **keywords(schedule))
    needs_axes = "axes" in inspect.signature(optimizer).parameters
    shapes = {"axes": axes} if needs_axes else {}
    clip = settings["clip"]
    clipping = optax.clip_by_global_norm(clip) if clip else optax.identity()
    return _float32(clipping, optimizer(lr, **shapes, **keywords(optimizer))), lr


def adamw(
    lr,
    *,
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    decay=0.0,
    decay_mask=NOT_DECAYED,
    momentum_dtype="float32",
):
    """Adam with decoupled weight decay (arXiv:1711.05101).

    m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g²;  direction = m̂ / (sqrt(v̂) + eps),
    where ^ divides by 1 - b^n. Only m is kept in `momentum_dtype`.
    """
    adam = optax.scale_by_adam(b1, b2, eps, mu_dtype=jnp.dtype(momentum_dtype))
    return _float32(adam, _decay(decay, decay_mask), optax.scale_by_learning_rate(lr))


def lion(
    lr, *, b1=0.9, b2=0.99, decay=0.0, decay_mask=NOT_DECAYED, momentum_dtype="float32"
):
    """Lion (arXiv:2302.06675): direction = sign(b1 m + (1-b1) g); m = b2 m + (1-b2) g.

    Every entry moves by lr: use 3 to 10 times less than for AdamW, and that much more
    decay.
    """
    sign = optax.scale_by_lion(b1, b2, mu_dtype=jnp.dtype(momentum_dtype))
    return _float32(sign, _decay(decay, decay_mask), optax.scale_by_learning_rate(lr))


def adafactor(
    lr,
    *,
    axes,
    b2_power=0.8,
    clip_rms=1.0,
    min_dim=128,
    decay=0.0,
    decay_mask=NOT_DECAYED,
):
    """Adafactor (arXiv:1804.04235) without momentum, relative steps or parameter scale.

    The second moment of a matrix is kept as its row and column means, v = row col /
    mean(row), with b2 = 1 - n^-b2_power at update n; direction = g / sqrt(v), scaled
    down to a root mean square of `clip_rms`. Each layer is a matrix of its own: nothing
    is averaged over layers. Vectors, and matrices with a side below `min_dim`, keep v.
    """
    factored = _scale_by_factored_rms(axes, b2_power, clip_rms, min_dim)
    return _float32(
        factored, _decay(decay, decay_mask), optax.scale_by_learning_rate(lr)
    )


def muon(
    lr,
    *,
    axes,
    momentum=0.95,
    newton_schulz_steps=5,
    scale="rms",
    adam_lr_ratio=1.0,
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    decay=0.0,
    decay_mask=NOT_DECAYED,
):
    """Muon for the matrices of the layers, AdamW (b1, b2, eps) for everything else.

    m = momentum m + (1-momentum) g;  direction = scale * orthogonal(momentum m +
    (1-momentum) g): each layer's matrix [in, out] with its singular values set to about
    1 (0.7 to 1.2). Query, key and value are matrices embed x (heads * head_dim), the
    attention output is (heads * head_dim) x embed.

    scale="rms" is 0.2 sqrt(max(in, out)), the size of an AdamW update, so that learning
    rates and decay carry over (arXiv:2502.16982). scale="spectral" is sqrt(max(1, out /
    in)), as in Jordan's original: lr is then near 0.02, and `adam_lr_ratio` multiplies
    it for the AdamW part.
    """
    if scale not in ("rms", "spectral"):
        raise UserError(f'muon: scale "{scale}" is unknown; use "rms" or "spectral"')
    flat_axes = flatten_dict(axes, sep="/")
    matrix = lambda name: _layer_matrix(flat_axes[name])
    ratio = lambda name, u: u if matrix(name) else u * adam_lr_ratio
    return _float32(
        _scale_by_muon(matrix, momentum, newton_schulz_steps, scale, b1, b2, eps),
        _decay(decay, decay_mask),
        optax.stateless(lambda updates, params: _map_named(ratio, updates)),
        optax.scale_by_learning_rate(lr),
    )


def state_axes(optimizer, params, axes):
    """The optimizer's state with logical axes for leaves, to shard it like `params`.

    A state leaf has the rank of its parameter and its axes, None where a dimension was
    averaged to size 1; counters get (). `params` may hold abstract arrays.
    """
    flat_axes = flatten_dict(axes, sep="/")
    names = _map_named(lambda name, _: flat_axes[name], params)
    kept = lambda leaf, param, names: tuple(
        name if size == full else None
        for name, size, full in zip(names, leaf.shape, param.shape, strict=True)
    )
    state = jax.eval_shape(optimizer.init, params)
    none = lambda _: ()
    return optax.tree_map_params(
        optimizer, kept, state, params, names, transform_non_params=none
    )


def trainable(tree, freeze=None, train=None):
    """Tree of bool: is the name found by `train` (if given) and not by `freeze`?

    Both are regular expressions, matched anywhere in a name; None or "" is unused.
    """
    names = flatten_dict(tree, sep="/")
    chosen = _matching(train, names, "train") if train else set(names)
    chosen -= _matching(freeze, names, "freeze") if freeze else set()
    if not chosen:
        raise UserError(f"nothing is left to train: train={train!r}, freeze={freeze!r}")
    return unflatten_dict({name: name in chosen for name in names}, sep="/")


def partition(tree, mask):
    """(selected, rest): two trees like `tree`, None where the other has the leaf."""
    leaves, mask = flatten_dict(tree, sep="/"), flatten_dict(mask, sep="/")
    half = lambda wanted: unflatten_dict(
        {name: x if mask[name] == wanted else None for name, x in leaves.items()},
        sep="/",
    )
    return half(True), half(False)


def combine(selected, rest):
    """The tree that `partition` took apart."""
    selected, rest = flatten_dict(selected, sep="/"), flatten_dict(rest, sep="/")
    pick = lambda name, x: rest[name] if x is None else x
    return unflatten_dict(
        {name: pick(name, x) for name, x in selected.items()}, sep="/"
    )


# --- the mathematics of Adafactor and Muon


class FactoredState(NamedTuple):
    count: jax.Array
    row: Any  # mean of g² over the outputs, kept as size 1; all of v if not factored
    col: Any  # mean of g² over the inputs, kept as size 1


def _scale_by_factored_rms(axes, b2_power, clip_rms, min_dim):
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
        return FactoredState(count, _map_named(row, params), _map_named(col, params))

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

        row = _map_named(average(1), grads, state.row)
        col = _map_named(average(0), grads, state.col)
        updates = _map_named(direction, grads, row, col)
        return updates, FactoredState(count, row, col)

    return optax.GradientTransformation(init, update)


class MuonState(NamedTuple):
    count: jax.Array
    mu: Any  # momentum, of Muon or of Adam
    nu: Any  # Adam's second moment; all dimensions of size 1 for Muon's matrices


def _scale_by_muon(matrix, momentum, steps, scale, b1, b2, eps):
    """`matrix(name)` is (layers, inputs, outputs) dimensions, or None for Adam."""

    def init(params):
        empty = lambda name, p: jnp.zeros((1,) * p.ndim if matrix(name) else p.shape)
        mu = jax.tree.map(jnp.zeros_like, params)
        return MuonState(jnp.zeros([], jnp.int32), mu, _map_named(empty, params))

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

        mu = _map_named(first, grads, state.mu)
        nu = _map_named(second, grads, state.nu)
        updates = _map_named(direction, grads, mu, nu)
        return updates, MuonState(count, mu, nu)

    return optax.GradientTransformation(init, update)


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


# --- names and shapes


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


def _layer_matrix(axes):
    """As `_matrix`; None for vectors, and for weights outside the layers."""
    layers, inputs, outputs = _matrix(axes)
    return (layers, inputs, outputs) if layers and outputs else None


def _map_named(f, tree, *rest):
    """`jax.tree.map` with the parameter's name as first argument."""
    name = lambda path: "/".join(key.key for key in path)
    return jax.tree.map_with_path(lambda path, *xs: f(name(path), *xs), tree, *rest)


def _decay(rate, mask):
    """Adds rate * p, except to names in which `mask` is found ("" masks nothing)."""
    decayed = lambda name, _: not (mask and re.search(mask, name))
    return optax.add_decayed_weights(rate, lambda params: _map_named(decayed, params))


def _float32(*transforms):
    """`optax.chain` that sees parameters and gradients in float32."""
    chain = optax.chain(*transforms)
    cast = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def update(grads, state, params=None):
        return chain.update(cast(grads), state, cast(params))

    return optax.GradientTransformation(lambda params: chain.init(cast(params)), update)


def _matching(pattern, names, key):
    """The names in which `pattern` is found; at least one, or it is a mistake."""
    try:
        found = {name for name in names if re.search(pattern, name)}
    except re.error as error:
        raise UserError(
            f"{key}={pattern!r} is no regular expression: {error}"
        ) from None
    if not found:
        some = ", ".join(sorted(names)[:6])
        raise UserError(
            f"{key}={pattern!r} is in no parameter name; names are: {some} ..."
        )
    return found


# --- configs


def _find(module, first, key, name):
    """The public function of a module that is called `name` and starts with `first`."""
    starts = lambda f: next(iter(inspect.signature(f).parameters), None) == first
    functions = dict(inspect.getmembers(module, inspect.isfunction))
    names = [n for n, f in functions.items() if n[0] != "_" and starts(f)]
    if name not in names:
        raise UserError(
            f'optimizer.{key} "{name}" is unknown{_nearest(name, names)}; '
            f"there are: {', '.join(names)}"
        )
    return getattr(module, name)


def _check_keys(config, own, optimizer, schedule):
    """Every key belongs to `make`, to the optimizer or to the schedule."""
    known = [*own, *_keywords(optimizer), *_keywords(schedule)]
    for key in config:
        if key not in known:
            raise UserError(
                f"optimizer.{key} is not a setting of {optimizer.__name__} with "
                f"{schedule.__name__}{_nearest(key, known)}; there are: "
                f"{', '.join(known)}"
            )


def _keywords(function):
    """What a config may set: the keyword-only arguments, without `axes`."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "axes"]


def _nearest(word, words):
    close = difflib.get_close_matches(word, words, 1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _warmup_steps(warmup, total_steps):
    if warmup < 1:
        return schedules.count_steps(warmup, total_steps)
    if warmup != int(warmup):
        raise UserError(
            f"optimizer.warmup {warmup} is neither whole updates nor a fraction below 1"
        )
    return int(warmup)
