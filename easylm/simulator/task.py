"""What every family of tasks is made of: a task, and how tasks are drawn and split."""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple

SPLITS = ("train", "dev", "test")
PARTS = ("dev", *("test",) * 3, *("train",) * 8)  # how the facts are shared out


class Task(NamedTuple):
    """A prompt, answers to it, and what its gold reward is computed from.

    `good` are answers without a fault; `fair` are answers as one finds them in data:
    wrong, careless or clumsy in the ways that the family is about. `fact` is what the
    task rests on: what rests on the same fact is in the same split.
    """

    family: str
    prompt: str
    good: tuple[str, ...]
    fair: tuple[str, ...]
    check: dict
    fact: str


def split(fact: str) -> str:
    """By a hash: every world has the same facts in its splits."""
    return PARTS[digest("split", fact) % len(PARTS)]


def digest(*parts) -> int:
    """A number that hangs on nothing but the parts: a random order that is no draw."""
    text = json.dumps(parts).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def chance(*parts) -> random.Random:
    """A generator of its own for every use, so that no draw moves another."""
    return random.Random(digest(*parts))


def conversation(prompt: str, answer: str) -> list[dict]:
    return [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": answer},
    ]


def demonstrated(tasks: Iterable[Task]) -> Iterator[Task]:
    """Those of the training split: what text and demonstrations may speak of."""
    return (task for task in tasks if split(task.fact) == "train")


def sentences(text: str) -> list[str]:
    return [part.strip() + "." for part in text.split(".") if part.strip()]
