"""What a verifier is, and how one is found by its name.

A verifier is a public function of a module of this package,

    name(prompt, response, answer, **options) -> float

that says how much of the response is right, from 0 to 1. `prompt` is the text of the
last user turn, `response` what the model wrote, without special tokens, and `answer`
the ground truth of the data row. It is deterministic, never raises for anything that a
model may write, and never executes it. An answer that no response could match raises
UserError; `check_name(answer)`, or `check(answer)` for all verifiers of a module, does
so before training starts.

A new verifier is a function with these three parameters, and `-> float`, in any file
here, or one in a file of your own that the config names: FILE.py:NAME. A module that
needs something heavy imports it where it is used, not at the top, and may have a
function `warm_up()` that does so: its time is not the verifier's.
"""

import difflib
import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping

from easylm import own, rewards
from easylm.errors import UserError

PARAMETERS = ["prompt", "response", "answer"]
OF_NUMBERS = {"transforms"}  # modules that hold no verifiers, and need numpy
DATASETS = {"gsm8k": "gsm8k", "math": "math", "ifeval": "if_constraints"}  # of RLVR


def get(name: str) -> Callable[..., float]:
    """The verifier of that name, or of the RLVR rows whose `dataset` has that name, or
    FILE.py:NAME of the user's own."""
    if own.is_own(name):
        return own.function(name, PARAMETERS)
    verifiers = known()
    found = verifiers.get(name) or verifiers.get(DATASETS.get(name.lower()))
    if found:
        return found
    near = difflib.get_close_matches(name, verifiers, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"unknown verifier {name!r}, there are {', '.join(verifiers)}, and FILE.py:NAME"
        f" for one of your own{hint}"
    )


def check(name: str, answer) -> None:
    """UserError if the answer is none that this verifier could compare with."""
    verifier = get(name)
    module = sys.modules[verifier.__module__]
    of_module = getattr(module, "check", lambda answer: None)
    getattr(module, f"check_{verifier.__name__}", of_module)(answer)


@functools.cache
def known() -> Mapping[str, Callable[..., float]]:
    """All verifiers of the package, by name."""
    modules = {module.name for module in pkgutil.iter_modules(rewards.__path__)}
    return {
        name: function
        for module in sorted(modules - OF_NUMBERS)
        for name, function in _verifiers(f"{rewards.__name__}.{module}")
    }


def _verifiers(module: str):
    for name, value in vars(importlib.import_module(module)).items():
        if (
            inspect.isfunction(value)
            and value.__module__ == module
            and not name.startswith("_")
            and _judges(inspect.signature(value))
        ):
            yield name, value


def _judges(signature):
    returns = signature.return_annotation in (float, "float")
    return returns and list(signature.parameters)[:3] == PARAMETERS
