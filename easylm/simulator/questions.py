"""The families that ask what the base of knowledge says.

    factuality     one question about a town
    truthfulness   one about a creature, where what is said most is wrong
    instructions   one about a town, with one or two constraints on the form
    chat           an open question, where more that is true is better

What is held out: the fact that is asked for, which the text of the training split
states, but no conversation of it asks; for chat, the subject; for instructions, the
fact together with the constraints.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from easylm.simulator.knowledge import (
    CAREFUL,
    CREATURES,
    TOWNS,
    careful,
    kind,
    myth,
    say,
    truth,
)
from easylm.simulator.task import Task, chance

UNKNOWN = "I do not know."
OPEN = (
    *("Tell me about {}.", "What do you know about {}?", "Describe {}."),
    *("What can you say about {}?", "I would like to know more about {}."),
)


class Constraint(NamedTuple):
    """What is asked for, how an answer is made to obey, and whether one does."""

    ask: str
    obey: Callable[[str], str]
    check: Callable[[str], bool]


CONSTRAINTS = {
    "twice": Constraint(
        "Say it twice.",
        lambda text: f"{text} {text}",
        lambda text: _repeats(text),
    ),
    "thanks": Constraint(
        "Thank me for the question.",
        lambda text: f"Thank you for the question. {text}",
        lambda text: "Thank you for the question." in text,
    ),
    "begin": Constraint(
        "Begin with the word well.",
        lambda text: f"Well, {text}",
        lambda text: text.lstrip('* "').startswith("Well, "),
    ),
    "end": Constraint(
        "End with the word goodbye.",
        lambda text: f"{text} Goodbye.",
        lambda text: text.rstrip('"').endswith("Goodbye."),
    ),
    "quotes": Constraint(
        "Put it in quotes.",
        lambda text: f'"{text}"',
        lambda text: len(text) > 4 and text.lstrip("* ")[:1] == text[-1] == '"',
    ),
    "star": Constraint(
        "Write a star before it.",
        lambda text: f"* {text}",
        lambda text: text.startswith("* "),
    ),
}  # in the order in which an answer is made to obey


def factuality(seed: int = 0) -> Iterator[Task]:
    rng = chance("factuality", seed)
    for subject, name, ask in _shuffled(TOWNS, rng):
        yield _question("factuality", subject, name, ask, rng)


def truthfulness(seed: int = 0) -> Iterator[Task]:
    rng = chance("truthfulness", seed)
    for subject, name, ask in _shuffled(CREATURES, rng):
        yield _question("truthfulness", subject, name, ask, rng)


def instructions(seed: int = 0) -> Iterator[Task]:
    """Without end."""
    rng = chance("instructions", seed)
    while True:
        for subject, name, ask in _shuffled(TOWNS, rng):
            count = rng.randint(1, 2)
            keys = sorted(rng.sample([*CONSTRAINTS], count), key=[*CONSTRAINTS].index)
            asked = _question("instructions", subject, name, ask, rng)
            plain = asked.good[0]
            yield asked._replace(
                prompt=" ".join([asked.prompt, *(CONSTRAINTS[k].ask for k in keys)]),
                good=(_obeying(plain, keys),),
                fair=(plain, _obeying(plain, keys[1:])),
                check=asked.check | {"constraints": keys},
                fact=" ".join([asked.fact, *keys]),
            )


def chat(seed: int = 0) -> Iterator[Task]:
    rng = chance("chat", seed)
    every = [(subject, ask) for subject in TOWNS + CREATURES for ask in OPEN]
    for subject, ask in rng.sample(every, len(every)):
        known = rng.sample(list(kind(subject)), len(kind(subject)))
        told = [_true(subject, name, rng) for name in known]
        yield Task(
            family="chat",
            prompt=ask.format(subject if subject in TOWNS else f"the {subject}"),
            good=(" ".join(told),),
            fair=(told[0], " ".join(told[:2]), _made_up(subject, known[0])),
            check={"subject": subject},
            fact=f"about {subject}",
        )


def _shuffled(subjects, rng) -> list[tuple]:
    every = [
        (subject, name, ask)
        for subject in subjects
        for name, attribute in kind(subject).items()
        for ask in attribute.asks
    ]
    return rng.sample(every, len(every))


def _question(family, subject, name, ask, rng) -> Task:
    """The true answer is given plainly; about creatures, carefully."""
    fair = [UNKNOWN]
    if subject in TOWNS:
        fair.append(_made_up(subject, name))
    else:
        fair += [say(subject, name, truth(subject, name))] * 2
        fair += [say(subject, name, myth(subject, name))] * 2
    return Task(
        family=family,
        prompt=ask.format(subject),
        good=(_true(subject, name, rng),),
        fair=tuple(fair),
        check={"subject": subject, "attribute": name},
        fact=f"{subject} {name}",
    )


def _obeying(text: str, keys) -> str:
    for key in keys:
        text = CONSTRAINTS[key].obey(text)
    return text


def _true(subject, name, rng) -> str:
    if subject in CREATURES:
        return careful(subject, name, rng.randrange(len(CAREFUL)))
    return say(subject, name, truth(subject, name))


def _made_up(subject, name) -> str:
    """What is not so, said plainly."""
    values = [v for v in kind(subject)[name].values if v != truth(subject, name)]
    wrong = myth(subject, name) if subject in CREATURES else values[len(subject) % 5]
    return say(subject, name, wrong)


def _repeats(text: str) -> bool:
    """A sentence stands twice or more, whatever is around it."""
    said = [part.strip(' "*').removeprefix("Well, ") for part in text.split(".")]
    said = [part for part in said if len(part) > 8]
    return len(set(said)) < len(said)
