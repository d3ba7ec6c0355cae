"""What an objective is, and how the loop gets one by its name."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from easylm import own
from easylm.errors import UserError
from easylm.losses.masked import Mean, masked_mean


class Objective(NamedTuple):
    """What is trained. The loop knows nothing else about the algorithm."""

    spec: Any  # tree of ParamSpec: every trained parameter
    prepare: Callable  # (params, frozen, batch, key) -> Prepared
    loss: Callable  # (params, batch) -> (Mean, {name: Mean}), pure
    unit: str = "tokens"  # what the loss is a mean over
    pairs: Callable | None = None  # (params, batch) -> Pairs, if it compares answers
    reference: bool = False  # whether `prepare` looks at frozen["reference"]
    cacheable: bool = True  # whether all that it asks can be computed beforehand
    mismatched: bool = False  # whether it asks for answers to other prompts, too
    constant: str = ""  # regular expression of parameters that have no gradient
    start: Callable = lambda params: params  # of the models -> all of `spec`
    after: Callable = lambda params, step: params  # what else an update changes
    online: bool = False  # whether data are prompts, answered by frozen["rollout"]
    updates: int = 1  # of an iteration: how many batches `prepare` gives
    blank: Callable | None = None  # of online ones: (params, frozen, seqs) -> a batch
    #   as `prepare` makes it, of zeros: what it looks like before anything is sampled
    temperature: float = 1.0  # of the policy and its reference


NOTHING = MappingProxyType({})
SHARED = ("base", "batch_terms", "estimates", "online")  # files that are no objective


class Prepared(NamedTuple):
    """What an iteration trains on, and what was seen on the way there."""

    batches: list  # each one update
    metrics: Mapping = NOTHING  # {name: Mean}
    samples: Sequence = ()  # of answers, as dicts, for people to read
    params: Mapping = NOTHING  # parts of the parameters that change without a gradient


class Pairs(NamedTuple):
    """P comparisons of two answers to one prompt, column 0 the better one.

    Rows have room for more than they hold: an answer of length 0 is not there.
    """

    loss: jax.Array  # float32[P]
    counts: jax.Array  # float32[P], 1 where the loss counts
    rewards: jax.Array  # float32[P, 2]
    lengths: jax.Array  # float32[P, 2] scored tokens

    @property
    def there(self):
        return jnp.all(self.lengths > 0, axis=1)

    @property
    def margins(self):
        return self.rewards[:, 0] - self.rewards[:, 1]


def compare(pairs: Pairs) -> dict[str, Mean]:
    """What is logged about every batch of comparisons."""
    metrics = {
        "loss": masked_mean(pairs.loss, pairs.counts),
        "rewards/margins": masked_mean(pairs.margins, pairs.there),
        "rewards/accuracies": masked_mean(pairs.margins > 0, pairs.there),
    }
    for column, answer in enumerate(("chosen", "rejected")):
        rewards, lengths = pairs.rewards[:, column], pairs.lengths[:, column]
        metrics[f"rewards/{answer}"] = masked_mean(rewards, lengths > 0)
        metrics[f"lengths/{answer}"] = masked_mean(lengths, lengths > 0)
    return metrics


def bind_loss(losses: dict[str, Callable], name: str, options: dict, *arrays):
    """losses[name] with its options, and what is wrong with them explained.

    `arrays` are the shapes of its positional arguments. The name may be FILE.py:NAME.
    """
    function = find_loss(losses, name, len(arrays))
    allowed = list(inspect.signature(function).parameters)[len(arrays) :]
    for key in options:
        if key not in allowed:
            raise UserError(f"loss {name} has no option {key!r}; it has {allowed}")
    bound = partial(function, **options)
    try:  # out of range shows now, not in the middle of a compilation
        given = _shapes(bound, arrays)
    except ValueError as e:
        raise UserError(str(e)) from None
    like = next(iter(losses))
    wanted = _shapes(losses[like], arrays)
    if given != wanted:  # a mean would be taken for the loss of every pair
        fix = f"give {wanted}, as {like} does: one number for each, not their mean"
        raise UserError(f"loss {name} gives the shape {given}; {fix}")
    return bound


def find_loss(losses: dict[str, Callable], name: str, arrays: int) -> Callable:
    """losses[name], or a function of the user's own file that takes the same arrays."""
    if own.is_own(name):
        like = inspect.signature(next(iter(losses.values())))
        return own.function(name, list(like.parameters)[:arrays])
    if name not in losses:
        known = ", ".join(losses)
        fix = "or FILE.py:NAME for one of your own"
        raise UserError(f"objective.loss={name!r} is not one of {known}, {fix}")
    return losses[name]


def _shapes(function, arrays):
    return jax.tree.map(lambda x: x.shape, jax.eval_shape(function, *arrays))


def with_dropout(model, batch: dict, key) -> dict:
    """The batch with seeds of the dropout, one per row, if the model has dropout."""
    if not model.config.dropout:
        return batch
    rows = batch["seqs"].tokens.shape[0]
    return batch | {"dropout": jax.random.bits(key, (rows,), "uint32")}


def dropout(batch: dict) -> dict:
    """The keyword of `forward` for a batch that `with_dropout` has seen."""
    seeded = "dropout" in batch
    return {"dropout_key": jax.random.key(batch["dropout"][0])} if seeded else {}


def make(name: str, model, value=None, **options) -> Objective:
    """`easylm/objectives/<name>.py`'s `make(model, **options)`.

    `value` is the value model, for those that have one. An option that is None keeps
    its default.
    """
    options = {key: x for key, x in options.items() if x is not None}
    import easylm.objectives as package

    known = sorted(m.name for m in pkgutil.iter_modules(package.__path__))
    known = [name for name in known if name not in SHARED]
    if name not in known:
        raise UserError(f"objective.name={name!r} is not one of {', '.join(known)}")
    make = importlib.import_module(f"easylm.objectives.{name}").make
    parameters = list(inspect.signature(make).parameters.values())[1:]
    if value is not None:
        make = partial(make, value=value)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return make(model, **options)  # it looks at the options of its loss itself
    allowed = [p.name for p in parameters]
    for key in options:
        if key not in allowed:
            raise UserError(f"objective {name} has no option {key!r}; it has {allowed}")
    return make(model, **options)
