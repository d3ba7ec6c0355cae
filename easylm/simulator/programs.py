"""Coding: programs of a tiny language, and the tests they have to pass.

A program is up to MOST commands joined by "|", which a list of whole numbers goes
through from left to right:

    even | double | sum        [1, 2, 4] -> [12]

`run` interprets it; whatever else is written is no program. Which program a task is
about is held out, not only the words that ask for it.
"""

from collections.abc import Callable, Iterator
from itertools import permutations

from easylm.simulator.task import Task, chance, demonstrated

MOST = 6
COMMANDS: dict[str, tuple[Callable[[list], list], tuple[str, ...]]] = {
    "sort": (sorted, ("sort the list", "put the numbers in order")),
    "flip": (lambda x: x[::-1], ("reverse the list", "turn the list around")),
    "double": (lambda x: [2 * n for n in x], ("double each number",)),
    "up": (lambda x: [n + 1 for n in x], ("add one to each number",)),
    "down": (lambda x: [n - 1 for n in x], ("take one from each number",)),
    "even": (lambda x: [n for n in x if n % 2 == 0], ("keep the even numbers",)),
    "odd": (lambda x: [n for n in x if n % 2], ("keep the odd numbers",)),
    "first": (lambda x: x[:1], ("take the first number",)),
    "last": (lambda x: x[-1:], ("take the last number",)),
    "rest": (lambda x: x[1:], ("drop the first number",)),
    "sum": (lambda x: [sum(x)], ("add all numbers up", "take the sum")),
    "count": (lambda x: [len(x)], ("count the numbers",)),
}
ASKS = ("Write a program: {}.", "I need a program to {}.", "Code this: {}.")
JOINS = {2: ("{0}, then {1}", "{1} after you {0}"), 3: ("{0}, then {1}, then {2}",)}
INPUTS = [[chance("input", i).randint(0, 9) for _ in range(5)] for i in range(6)]


def tasks(seed: int = 0) -> Iterator[Task]:
    rng = chance("programs", seed)
    names = list(COMMANDS)
    every = [p for n in (2, 3) for p in permutations(names, n)]
    while True:
        parts = rng.choice(every)
        if _ends_early(parts):
            continue
        wanted = [rng.choice(COMMANDS[name][1]) for name in parts]
        asked = rng.choice(ASKS).format(rng.choice(JOINS[len(parts)]).format(*wanted))
        text = " | ".join(parts)
        yield Task(
            family="coding",
            prompt=asked,
            good=(text,),
            fair=(" | ".join(_slip(parts, rng)),),
            check={"program": text},
            fact=text,
        )


def documents(count: int, seed: int = 0) -> Iterator[str]:
    """What commands do, one by one; and programs with what was asked for."""
    rng = chance("manual", seed)
    asked = demonstrated(tasks(seed + 1))
    for number in range(count):
        if number % 4:
            task = next(asked)
            yield f"{task.prompt} {task.good[0]}"
        else:
            names = rng.sample(list(COMMANDS), 4)
            yield " ".join(f"To {rng.choice(COMMANDS[n][1])}: {n}." for n in names)


def run(program: str, numbers: list[int]) -> list[int] | None:
    """What comes out; None if it is no program."""
    names = [name.strip() for name in program.strip().removesuffix(".").split("|")]
    if len(names) > MOST or not all(name in COMMANDS for name in names):
        return None
    for name in names:
        numbers = COMMANDS[name][0](numbers)
    return numbers


def passes(answer: str, check: dict) -> bool:
    """The same as the wanted program, on every input."""
    wanted = check["program"]
    return all(run(answer, list(x)) == run(wanted, list(x)) for x in INPUTS)


def is_program(answer: str) -> bool:
    return run(answer, []) is not None


def _ends_early(parts) -> bool:
    """Nothing is left to do after one number, or the last command does nothing."""
    single = {"first", "last", "sum", "count"}
    if any(name in single for name in parts[:-1]):
        return True
    return len({*parts} & {"even", "odd"}) > 1


def _slip(parts, rng) -> list[str]:
    """One command left out, or exchanged, or all in another order."""
    parts, kind = list(parts), rng.randrange(3)
    if kind == 0:
        parts.pop(rng.randrange(len(parts)))
    elif kind == 1:
        others = [name for name in COMMANDS if name not in parts]
        parts[rng.randrange(len(parts))] = rng.choice(others)
    else:
        parts.reverse()
    return parts
