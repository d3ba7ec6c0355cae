"""Optimizers: AdamW, Adafactor, Lion and Muon, and `make`, which builds one by name.

An optimizer is a public function here whose first argument is `lr`, a number or a
schedule. Whatever the parameters' dtype, it computes and keeps its state in float32.
The update of every one is `-lr * (direction + decay * p)`, with no `decay * p` for
names in which the regular expression `decay_mask` is found. `axes` is the tree of
logical axes, one tuple per parameter.
"""

import difflib
import inspect
import re
import sys
from numbers import Integral, Real

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict

from easylm.errors import UserError
from easylm.training import schedules
from easylm.training.precondition import (
    layer_matrix,
    scale_by_factored_rms,
    scale_by_muon,
)
from easylm.training.select import map_named, matching

# Norms, biases and input embeddings; the unembedding is decayed like a matrix.
NOT_DECAYED = r"norm|bias|\bembed\b"


def make(config, *, total_steps, axes):
    """(optimizer, schedule) from a config section.

    `name` (adamw), `lr`, `schedule` (linear), `warmup` (0.03: a fraction of the run if
    below 1, else updates), `clip` (1.0: largest global gradient norm, 0 is off),
    `offload` (False: whether the state is kept in the memory of the host), and any
    keyword of the chosen optimizer or schedule. None keeps a default.
    """
    config = {k: v for k, v in config.items() if v is not None}
    wrap = offloaded if config.pop("offload", False) else lambda optimizer: optimizer
    defaults = {"name": "adamw", "schedule": "linear", "warmup": 0.03, "clip": 1.0}
    settings = defaults | config
    optimizer = _find(sys.modules[__name__], "lr", "name", settings["name"])
    schedule = _find(schedules, "peak", "schedule", settings["schedule"])
    _check_keys(config, [*defaults, "lr"], optimizer, schedule)
    if "lr" not in settings:
        raise UserError("optimizer.lr is missing; state the peak learning rate")
    _check_types(settings, defaults | {"lr": 2e-5}, optimizer, schedule)
    if settings.get("decay_mask"):
        matching(settings["decay_mask"], flatten_dict(axes, sep="/"), "decay_mask")

    keywords = lambda f: {k: settings[k] for k in _keywords(f) if k in settings}
    warmup = _warmup_steps(settings["warmup"], total_steps)
    lr = schedule(settings["lr"], total_steps, warmup, **keywords(schedule))
    needs_axes = "axes" in inspect.signature(optimizer).parameters
    shapes = {"axes": axes} if needs_axes else {}
    clip = settings["clip"]
    clipping = optax.clip_by_global_norm(clip) if clip else optax.identity()
    made = wrap(optimizer(lr, **shapes, **keywords(optimizer)))
    return _float32(clipping, made), lr


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
    adam = optax.scale_by_adam(b1, b2, eps, mu_dtype=_dtype(momentum_dtype))
    return _float32(adam, _decay(decay, decay_mask), optax.scale_by_learning_rate(lr))


def lion(
    lr, *, b1=0.9, b2=0.99, decay=0.0, decay_mask=NOT_DECAYED, momentum_dtype="float32"
):
    """Lion (arXiv:2302.06675): direction = sign(b1 m + (1-b1) g); m = b2 m + (1-b2) g.

    Every entry moves by lr: use 3 to 10 times less than for AdamW, and that much more
    decay.
    """
    sign = optax.scale_by_lion(b1, b2, mu_dtype=_dtype(momentum_dtype))
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
    factored = scale_by_factored_rms(axes, b2_power, clip_rms, min_dim)
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
    matrix = lambda name: layer_matrix(flat_axes[name])
    ratio = lambda name, u: u if matrix(name) else u * adam_lr_ratio
    return _float32(
        scale_by_muon(matrix, momentum, newton_schulz_steps, scale, b1, b2, eps),
        _decay(decay, decay_mask),
        optax.stateless(lambda updates, params: map_named(ratio, updates)),
        optax.scale_by_learning_rate(lr),
    )


HOST = "pinned_host"  # the kind of memory


def offloaded(optimizer):
    """The same with a state that waits in the memory of the host. Two parameters at a
    time have theirs on the device, once their gradients are there."""

    def update(grads, state, params):
        names, found = map_named(lambda name, _: name, grads), []
        for name in jax.tree.leaves(names):
            mine = lambda x, other, name=name: x if other == name else None
            of = lambda tree, mine=mine: jax.tree.map(mine, tree, names)
            own = optax.tree_map_params(optimizer, mine, state, names)
            here = of(grads), own
            if len(found) > 1:
                here, found[-2] = jax.lax.optimization_barrier((here, found[-2]))
            else:
                here = jax.lax.optimization_barrier(here)
            moved, own = optimizer.update(
                here[0], _put(here[1], jax.memory.Space.Device), of(params)
            )
            found.append((moved, _put(own, jax.memory.Space.Host)))
        there = lambda *xs: next((x for x in xs if x is not None), None)
        return jax.tree.map(there, *found, is_leaf=lambda x: x is None)

    return optax.GradientTransformation(optimizer.init, update)


def _put(state, space):
    """All but counters."""
    return jax.tree.map(lambda x: jax.device_put(x, space) if x.ndim else x, state)


def state_axes(optimizer, params, axes):
    """The optimizer's state with logical axes for leaves, to shard it like `params`.

    A state leaf has the rank of its parameter and its axes, None where a dimension was
    averaged to size 1; counters get (). `params` may hold abstract arrays.
    """
    flat_axes = flatten_dict(axes, sep="/")
    names = map_named(lambda name, _: flat_axes[name], params)
    absent = lambda leaf: isinstance(leaf, optax.MaskedNode)  # another's parameter

    def kept(leaf, param, names):
        if absent(leaf):
            return leaf
        sizes = zip(names, leaf.shape, param.shape, strict=True)
        return tuple(name if size == full else None for name, size, full in sizes)

    state = jax.eval_shape(optimizer.init, params)
    none = lambda _: ()
    return optax.tree_map_params(
        optimizer,
        kept,
        state,
        params,
        names,
        transform_non_params=none,
        is_leaf=absent,
    )


def _dtype(name):
    """The dtype of the momentum."""
    try:
        dtype = jnp.dtype(name)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(
            f'optimizer.momentum_dtype "{name}" is no floating-point type; use '
            '"float32" or "bfloat16"'
        )
    return dtype


def _decay(rate, mask):
    """Adds rate * p, except to names in which `mask` is found ("" masks nothing)."""
    decayed = lambda name, _: not (mask and re.search(mask, name))
    return optax.add_decayed_weights(rate, lambda params: map_named(decayed, params))


def _float32(*transforms):
    """`optax.chain` that sees parameters and gradients in float32."""
    chain = optax.chain(*transforms)
    cast = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def update(grads, state, params=None):
        return chain.update(cast(grads), state, cast(params))

    return optax.GradientTransformation(lambda params: chain.init(cast(params)), update)


def _find(module, first, key, name):
    """The public function of a module that is called `name` and starts with `first`."""
    starts = lambda f: next(iter(inspect.signature(f).parameters), None) == first
    functions = dict(inspect.getmembers(module, inspect.isfunction))
    names = [n for n, f in functions.items() if n[0] != "_" and starts(f)]
    if name not in names:
        raise UserError(
            f'optimizer.{key} "{name}" is unknown{_nearest(str(name), names)}; '
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


def _check_types(settings, examples, *functions):
    """Every value is of the type of its default; whole numbers are numbers too."""
    for function in functions:
        examples = examples | _keywords(function)
    types = {
        float: (Real, "a number"),
        int: (Integral, "a whole number"),
        str: (str, "text"),
    }
    for key, value in settings.items():
        kind, words = types[type(examples[key])]
        if isinstance(value, bool) or not isinstance(value, kind):
            raise UserError(
                f"optimizer.{key}={value!r} is not {words}; give one such as "
                f"{examples[key]!r}"
            )


def _keywords(function):
    """What a config may set: keyword-only arguments but `axes`, with the defaults."""
    parameters = inspect.signature(function).parameters.values()
    keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    return {name: default for name, default in keywords.items() if name != "axes"}


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
