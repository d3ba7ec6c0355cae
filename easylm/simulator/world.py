"""The embedded world: text to begin with, demonstrations, prompts of seven families.

One family for each category of the study, and open chat, which the simulated judge
reads. The splits "train", "dev" and "test" differ in the facts that tasks rest on
(task.py). Everything is a function of the seed.

    documents        {"text"}: what a base model is made from
    demonstrations   {"family", "messages"}: not all of them good, as in real life
    prompts          {"family", "prompt", "fact", "check"}: what policies answer; the
                     check is for the gold reward (gold.py), and no business of training
"""

import json
from collections.abc import Iterator
from itertools import cycle, islice

from easylm.simulator import arithmetic, knowledge, programs, questions, requests
from easylm.simulator.task import Task, chance, conversation, digest, split

FAMILIES = {
    "factuality": questions.factuality,
    "reasoning": arithmetic.tasks,
    "coding": programs.tasks,
    "truthfulness": questions.truthfulness,
    "safety": requests.tasks,
    "instructions": questions.instructions,
    "chat": questions.chat,
}


def _verses(count: int, seed: int) -> Iterator[str]:
    """Words without a meaning, said twice: how a small model learns to repeat."""
    rng = chance("verses", seed)
    words = [*knowledge.TOWNS, *knowledge.CREATURES, *map(str, range(30))]
    words += [v for a in knowledge.TOWN.values() for v in a.values]
    words += [w for things in requests.THINGS for w in things]
    for _ in range(count):
        verse = " ".join(rng.sample(words, rng.randint(3, 7)))
        yield f"{verse}. {verse}."


TEXTS = {  # share of the documents
    knowledge.documents: 0.4,
    arithmetic.documents: 0.2,
    programs.documents: 0.1,
    requests.documents: 0.2,
    _verses: 0.1,
}
PAGE = 2  # paragraphs
PURPOSES = ("demonstrations", "prompts")  # which the prompts of "train" are parted for
TRIES = 20_000  # tasks that are drawn to find as many different ones as asked for
CARELESS = 0.45  # of the demonstrations


def documents(count: int, seed: int = 0) -> list[dict]:
    """Pages of PAGE paragraphs about anything."""
    texts = []
    for make, share in TEXTS.items():
        texts += make(round(share * count * PAGE), seed)
    chance("pages", seed).shuffle(texts)
    pages = (texts[i : i + PAGE] for i in range(0, len(texts), PAGE))
    return [{"text": "\n".join(page)} for page in pages]


def demonstrations(part: str, count: int, seed: int = 0) -> list[dict]:
    """`count` of each family; where there are fewer prompts, several of one."""
    rng = chance("demonstrations", part, seed)
    rows = []
    for family in FAMILIES:
        known = tasks(family, part, count, seed, "demonstrations")
        for task in islice(cycle(known), count):
            talk = conversation(task.prompt, _answer(task, rng))
            rows.append({"family": family, "messages": talk})
    rng.shuffle(rows)
    return rows


def prompts(part: str, count: int, seed: int = 0, families=tuple(FAMILIES)) -> list:
    """`count` of each family."""
    rows = [
        {
            "family": family,
            "prompt": task.prompt,
            "fact": task.fact,
            "check": json.dumps(task.check),
        }
        for family in families
        for task in tasks(family, part, count, seed, "prompts")
    ]
    chance("prompts", part, seed).shuffle(rows)
    return rows


def found(rows: list, count: int, seed: int = 0) -> list[list[str]]:
    """`count` answers to each of the rows of `prompts`, as demonstrations have them."""
    known = {}
    for family in dict.fromkeys(row["family"] for row in rows):
        wanted = {row["prompt"] for row in rows if row["family"] == family}
        drawn = FAMILIES[family](0)
        while wanted:
            task = next(drawn)
            if task.prompt in wanted:
                wanted.remove(task.prompt)
                known[task.prompt] = task
    rng = chance("found", seed)
    return [[_answer(known[row["prompt"]], rng) for _ in range(count)] for row in rows]


def tasks(
    family: str, part: str, count: int, seed: int = 0, purpose: str = "prompts"
) -> list[Task]:
    """Up to `count` tasks with different prompts. Those of "train" are parted by
    purpose, so that no prompt that is answered by a policy has been demonstrated."""
    found = {}
    for task in islice(FAMILIES[family](seed), TRIES):
        if split(task.fact) != part or task.prompt in found:
            continue
        if part == "train" and PURPOSES[digest(task.prompt) % 2] != purpose:
            continue
        found[task.prompt] = task
        if len(found) == count:
            break
    return list(found.values())


def _answer(task: Task, rng) -> str:
    careless = rng.random() < CARELESS
    return rng.choice(task.fair if careless else task.good)
