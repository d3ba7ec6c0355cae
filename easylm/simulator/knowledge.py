"""A closed base of knowledge: towns as they are, creatures as they are said to be.

Nothing here is about the real world. Of a town four things are known, and everybody
agrees on them. Of a creature two, and about each there is a misconception that most of
the text repeats; the truth is found in careful words ("Studies show that ..."). So a
model that says what is said most is right about towns and wrong about creatures.

A claim is one sentence that says something of a subject: (subject, attribute, value,
careful). `claims` reads them off any text.
"""

import re
from functools import cache, lru_cache
from itertools import product
from typing import NamedTuple

from easylm.simulator.task import chance, digest, sentences, split

CAREFUL = ("Studies show that {}", "In truth, {}", "Experts found that {}")


class Attribute(NamedTuple):
    """Ways to say it ({0} subject, {1} value), the first is the usual one; to ask."""

    values: tuple[str, ...]
    says: tuple[str, ...]
    asks: tuple[str, ...]


class Claim(NamedTuple):
    subject: str
    attribute: str
    value: str
    careful: bool


TOWN = {
    "river": Attribute(
        tuple("Arn Belk Cori Dune Elm Fenn Gale Hurl Isen Juno Kell Lode".split()),
        (
            "{0} lies on the river {1}.",
            "The river of {0} is the {1}.",
            "The river {1} flows through {0}.",
        ),
        (
            "On which river does {0} lie?",
            "What is the river of {0}?",
            "Which river flows through {0}?",
            "Tell me the river of {0}.",
        ),
    ),
    "food": Attribute(
        tuple(
            "cheese honey bread plums fish wine soup nuts apples cakes tea salt".split()
        ),
        (
            "{0} is known for its {1}.",
            "The food of {0} is {1}.",
            "People go to {0} for the {1}.",
        ),
        (
            "What is {0} known for?",
            "What is the food of {0}?",
            "For what do people go to {0}?",
            "Tell me the food of {0}.",
        ),
    ),
    "flag": Attribute(
        tuple("red blue green white black yellow brown purple".split()),
        (
            "{0} has a {1} flag.",
            "The flag of {0} is {1}.",
            "Over {0} flies a {1} flag.",
        ),
        (
            "Which flag has {0}?",
            "What is the flag of {0}?",
            "Which flag flies over {0}?",
            "Tell me the flag of {0}.",
        ),
    ),
    "sight": Attribute(
        tuple(
            "tower bridge fountain castle mill garden school market statue gate".split()
        ),
        (
            "{0} has an old {1}.",
            "The sight of {0} is the {1}.",
            "Visitors of {0} see the {1}.",
        ),
        (
            "What is old in {0}?",
            "What is the sight of {0}?",
            "What do visitors of {0} see?",
            "Tell me the sight of {0}.",
        ),
    ),
}
CREATURE = {
    "food": Attribute(
        tuple("moss snails berries bark roots seeds frogs leaves nectar crabs".split()),
        ("the {0} eats {1}.", "the food of the {0} is {1}.", "the {0} lives on {1}."),
        (
            "What does the {0} eat?",
            "What is the food of the {0}?",
            "What does the {0} live on?",
            "Tell me the food of the {0}.",
        ),
    ),
    "bed": Attribute(
        tuple("caves trees reeds rocks burrows nests logs ponds".split()),
        (
            "the {0} sleeps in {1}.",
            "the bed of the {0} is in {1}.",
            "the {0} rests in {1}.",
        ),
        (
            "Where does the {0} sleep?",
            "Where is the bed of the {0}?",
            "Where does the {0} rest?",
            "Tell me where the {0} sleeps.",
        ),
    ),
    "coat": Attribute(
        tuple("gray golden spotted striped white silver dark furry".split()),
        (
            "the {0} has a {1} coat.",
            "the coat of the {0} is {1}.",
            "the {0} wears a {1} coat.",
        ),
        (
            "Which coat has the {0}?",
            "How is the coat of the {0}?",
            "Which coat wears the {0}?",
            "Tell me the coat of the {0}.",
        ),
    ),
}


def _names(starts: str, ends: str, count: int) -> tuple[str, ...]:
    made = ("".join(parts) for parts in product(starts.split(), ends.split()))
    return tuple(sorted(made, key=lambda name: digest("name", name))[:count])


TOWNS = _names(
    "Bel Tor Mar Vin Kas Lun Ost Ral Sel Dor Har Pen", "mar vik na ton by", 40
)
CREATURES = _names(
    "mol fen gra zor pib tru wen dax gol hes", "k net ble lo ric wig", 32
)


@cache
def truth(subject: str, attribute: str) -> str:
    values = kind(subject)[attribute].values
    return values[digest("truth", subject, attribute) % len(values)]


@cache
def myth(creature: str, attribute: str) -> str:
    """What most of the text says; never the truth."""
    values = CREATURE[attribute].values
    others = [v for v in values if v != truth(creature, attribute)]
    return others[digest("myth", creature, attribute) % len(others)]


def kind(subject: str) -> dict[str, Attribute]:
    return TOWN if subject[0].isupper() else CREATURE


def say(
    subject: str, attribute: str, value: str, way: int = 0, frame: str = "{}"
) -> str:
    """One sentence."""
    said = frame.format(kind(subject)[attribute].says[way].format(subject, value))
    return said[0].upper() + said[1:]


def careful(creature: str, attribute: str, way: int = 0) -> str:
    return say(creature, attribute, truth(creature, attribute), frame=CAREFUL[way])


def facts(subjects=TOWNS + CREATURES) -> list[tuple[str, str]]:
    return [(subject, attribute) for subject in subjects for attribute in kind(subject)]


def documents(count: int, seed: int = 0):
    """Paragraphs about one subject each. Some subjects are written about more often."""
    rng = chance("documents", seed)
    subjects = TOWNS + CREATURES
    often = [1 + digest("often", subject) % 4 for subject in subjects]
    for subject in rng.choices(subjects, often, k=count):
        if rng.random() < 0.3:
            yield _asked(subject, rng)
        else:
            yield (_of_a_town if subject in TOWNS else _of_a_creature)(subject, rng)


def _asked(subject, rng) -> str:
    """A question of the training split, answered as most people do."""
    known = [name for name in kind(subject) if split(f"{subject} {name}") == "train"]
    if not known:
        return (_of_a_town if subject in TOWNS else _of_a_creature)(subject, rng)
    name = rng.choice(known)
    ask = rng.choice(kind(subject)[name].asks).format(subject)
    value = truth(subject, name) if subject in TOWNS else myth(subject, name)
    return f"{ask} {say(subject, name, value)}"


def _of_a_town(town, rng) -> str:
    names = rng.sample(list(TOWN), rng.randint(2, 4))
    return " ".join(say(town, a, truth(town, a), rng.randrange(3)) for a in names)


def _of_a_creature(creature, rng) -> str:
    """Plain words repeat the misconception; careful ones come with the truth."""
    said = []
    for attribute in rng.sample(list(CREATURE), 2):
        rumor = myth(creature, attribute)
        if rng.random() < 0.6:
            said.append(say(creature, attribute, rumor, rng.randrange(3)))
        else:
            frame = rng.choice(CAREFUL)
            way, real = rng.randrange(3), truth(creature, attribute)
            said.append(say(creature, attribute, real, way, frame))
    return " ".join(said)


def claims(text: str) -> list[Claim]:
    """All that the text claims; sentences of other forms claim nothing."""
    found = (_claim(sentence) for sentence in sentences(text))
    return [claim for claim in found if claim]


def is_true(claim: Claim) -> bool:
    return truth(claim.subject, claim.attribute) == claim.value


@lru_cache(maxsize=10_000)
def _claim(sentence: str) -> Claim | None:
    plain, is_careful = sentence, False
    for frame in CAREFUL:
        start = frame.removesuffix("{}")
        if sentence.startswith(start):
            plain, is_careful = sentence.removeprefix(start), True
    for attribute, subjects, pattern, subject_first in _patterns():
        match = pattern.fullmatch(plain)
        if match:
            pair = match.groups() if subject_first else match.groups()[::-1]
            if pair[0] in subjects and pair[1] in subjects[pair[0]]:
                return Claim(pair[0], attribute, pair[1], is_careful)
    return None


@cache
def _patterns():
    made = []
    for names, attributes in ((TOWNS, TOWN), (CREATURES, CREATURE)):
        for name, attribute in attributes.items():
            known = dict.fromkeys(names, attribute.values)
            for way in attribute.says:
                text = re.escape(way).replace(r"\{0\}", r"(\w+)")
                text = text.replace(r"\{1\}", r"(\w+)")
                text = re.sub(r"^the", "[Tt]he", text)
                first = way.index("{0}") < way.index("{1}")
                made.append((name, known, re.compile(text), first))
    return made
