"""Parameters with every kind of shape a decoder has, for tests of the optimizers."""

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from easylm.training import optimizer

# L=3 layers, D=8 embed, H=2 heads of 3, V=11 vocab, F=12 mlp
SHAPES = {
    "embed": ((11, 8), ("vocab", "embed")),
    "layers/attn/q": ((3, 8, 2, 3), ("layers", "embed", "heads", "head_dim")),
    "layers/attn/o": ((3, 2, 3, 8), ("layers", "heads", "head_dim", "embed")),
    "layers/attn/q_bias": ((3, 2, 3), ("layers", "heads", "head_dim")),
    "layers/attn/q_norm": ((3, 2, 3), ("layers", "heads", None)),
    "layers/attn_norm": ((3, 8), ("layers", None)),
    "layers/mlp/up/w": ((3, 8, 12), ("layers", "embed", "mlp")),
    "layers/mlp/up/lora_a": ((3, 8, 2), ("layers", "embed", None)),
    "final_norm": ((8,), (None,)),
    "unembed": ((8, 11), ("embed", "vocab")),
}
MATRICES = [n for n, (shape, _) in SHAPES.items() if n.split("/")[-1] in "q o w lora_a"]
NAMES = ["adamw", "adafactor", "lion", "muon"]


def nest(flat):
    tree = {}
    for name, x in flat.items():
        *path, last = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = x
    return tree


def flat(tree):
    return flatten_dict(tree, sep="/")


AXES = nest({name: axes for name, (_, axes) in SHAPES.items()})
FEW = ("embed", "layers/attn/q")  # fewer to compile


def random_tree(seed, names=tuple(SHAPES), dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(rng.normal(size=shape), dtype)
    return nest({name: draw(SHAPES[name][0]) for name in names})


def build(name, lr=1e-2, **keywords):
    if name in ("adafactor", "muon"):
        keywords["axes"] = AXES
    return getattr(optimizer, name)(lr, **keywords)


def steps(transform, params, *gradients):
    """The last updates, and the state after them."""
    update, state = jax.jit(transform.update), jax.jit(transform.init)(params)
    for grads in gradients:
        updates, state = update(grads, state, params)
    return updates, state
