"""A function of a user's own file, FILE.py:NAME, where a name of ours could stand.

    --config.objective.loss=my_loss.py:gentle
    --config.reward.terms.verifier.verifier=my_reward.py:polite

FILE is a path, from where the command is given. Only configs name such functions; rows
of data cannot. A run keeps the name, not the text: keep the file with it. A file that
has changed is read again.
"""

import difflib
import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from easylm.errors import UserError


def is_own(name: str) -> bool:
    return ".py:" in name


def function(name: str, parameters: Sequence[str]) -> Callable:
    """The function FILE.py:NAME, whose first parameters must have these names."""
    file, _, wanted = name.rpartition(":")
    path = Path(file).resolve()
    if not path.is_file():
        raise UserError(f"{name}: there is no file {path}; give the path of yours")
    module = _read(str(path), path.stat().st_mtime_ns)
    known = {k: f for k, f in vars(module).items() if _is_of(module, f)}
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        has = ", ".join(known) or "none"
        raise UserError(f"{name}: no such function; {file} has {has}{hint}")
    given = list(inspect.signature(known[wanted]).parameters)
    if given[: len(parameters)] != list(parameters):
        signature = f"def {wanted}({', '.join(parameters)}, ...)"
        raise UserError(f"{name} takes ({', '.join(given)}); write {signature}")
    return known[wanted]


@functools.lru_cache
def _read(path: str, changed: int):
    """The module, known to Python by its path, so that no name is taken."""
    spec = importlib.util.spec_from_file_location(path, path)
    module = sys.modules[path] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _is_of(module, value) -> bool:
    return inspect.isfunction(value) and value.__module__ == module.__name__
