"""What an objective is, and how the loop gets one by its name."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

from easylm.errors import UserError


class Objective(NamedTuple):
    """What is trained. The loop knows nothing else about the algorithm."""

    spec: Any  # tree of ParamSpec: every trained parameter
    prepare: Callable  # (params, frozen, batch, key) -> [batch], each one update
    loss: Callable  # (params, batch) -> (Mean, {name: Mean}), pure


def make(name: str, model, **options) -> Objective:
    """`easylm/objectives/<name>.py`'s `make(model, **options)`."""
    import easylm.objectives as package

    known = sorted(m.name for m in pkgutil.iter_modules(package.__path__))
    known.remove("base")
    if name not in known:
        raise UserError(f"objective.name={name!r} is not one of {', '.join(known)}")
    make = importlib.import_module(f"easylm.objectives.{name}").make
    allowed = list(inspect.signature(make).parameters)[1:]
    for key in options:
        if key not in allowed:
            raise UserError(f"objective {name} has no option {key!r}; it has {allowed}")
    return make(model, **options)
