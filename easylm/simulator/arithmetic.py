"""Reasoning: small stories that change a number two or three times.

An answer with worked steps ends in "The answer is N."; so does one without, but who
writes the steps has only small sums to do. Only the last number counts.
"""

import re
from collections.abc import Iterator

from easylm.simulator.task import Task, chance, demonstrated

PEOPLE = "Anna Ben Clara David Emma Felix Grace Henry Ida Jack".split()
THINGS = "pears coins books cards shells stones".split()
MORE = ("finds {}", "buys {}", "gets {}")
LESS = ("loses {}", "sells {}", "gives away {}")
LARGEST = 9  # of one digit, so that small models learn all the sums there are
NUMBER = re.compile("[0-9]+")


def tasks(seed: int = 0) -> Iterator[Task]:
    """No end of stories."""
    rng = chance("arithmetic", seed)
    while True:
        total, *steps = numbers = _draw(rng)
        yield _task(rng, numbers, total, steps)


def documents(count: int, seed: int = 0) -> Iterator[str]:
    """Sums, and worked stories of the training split."""
    rng = chance("sums", seed)
    stories = demonstrated(tasks(seed + 1))
    for number in range(count):
        if number % 2:
            task = next(stories)
            yield f"{task.prompt} {task.good[0]}"
        else:
            yield " ".join(_sum(rng) for _ in range(6))


def is_right(answer: str, check: dict) -> bool:
    found = NUMBER.findall(answer)
    return bool(found) and found[-1] == str(check["number"])


def _draw(rng) -> list[int]:
    """A first number, and two or three changes; no total leaves 0 to LARGEST."""
    while True:
        numbers = [rng.randint(1, LARGEST)]
        numbers += [rng.choice((-1, 1)) * rng.randint(1, 5) for _ in range(_steps(rng))]
        totals = [sum(numbers[:n]) for n in range(1, len(numbers) + 1)]
        if min(totals) >= 0 and max(totals) <= LARGEST:
            return numbers


def _steps(rng) -> int:
    return rng.choice((2, 2, 3))


def _task(rng, numbers, total, steps) -> Task:
    who, what = rng.choice(PEOPLE), rng.choice(THINGS)
    told = [f"{who} has {total} {what}."]
    worked = []
    for step in steps:
        ways = MORE if step > 0 else LESS
        told.append(f"{who} {rng.choice(ways).format(abs(step))}.")
        sign = "+" if step > 0 else "-"
        worked.append(f"{total} {sign} {abs(step)} = {total + step}.")
        total += step
    answer = f"The answer is {total}."
    near = [n for n in range(total - 2, total + 3) if n >= 0 and n != total]
    wrong = f"The answer is {rng.choice(near)}."
    told.append(f"How many {what} does {who} have?")
    return Task(
        family="reasoning",
        prompt=" ".join(told),
        good=(" ".join([*worked, answer]),),
        fair=(answer, wrong),
        check={"number": total},
        fact=" ".join(map(str, numbers)),
    )


def _sum(rng) -> str:
    a, b = rng.randint(0, LARGEST), rng.randint(1, 5)
    if a + b <= LARGEST and (a < b or rng.random() < 0.5):
        return f"{a} + {b} = {a + b}."
    return f"{a} - {b} = {a - b}." if a >= b else f"{a} + {b} = {a + b}."
