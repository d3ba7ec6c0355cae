"""Selection: which parameters something applies to, chosen by their names.

A name is a "/"-joined path (`layers/attn/q`). Parameters that are not trained are taken
out with `partition` before an optimizer sees them, so they have no state, no share in
the gradient norm and no decay.
"""

import re

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from easylm.errors import UserError


def trainable(tree, freeze=None, train=None):
    """Tree of bool: is the name found by `train` (if given) and not by `freeze`?

    Both are regular expressions, matched anywhere in a name; None or "" is unused.
    """
    names = flatten_dict(tree, sep="/")
    chosen = matching(train, names, "train") if train else set(names)
    chosen -= matching(freeze, names, "freeze") if freeze else set()
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


def matching(pattern, names, key):
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


def map_named(f, tree, *rest):
    """`jax.tree.map` with the parameter's name as first argument."""
    name = lambda path: "/".join(key.key for key in path)
    return jax.tree.map_with_path(lambda path, *xs: f(name(path), *xs), tree, *rest)
