"""Small talk: conversations that a model of a million parameters can learn to hold.

Ten families of questions with one right answer. A conversation is one to three turns;
some begin with a system message that changes how the answer is written.

Every turn rests on a `fact`. One fact in eight, chosen by a hash of its name, is held
out: "train" holds no conversation that touches it, and in "validation" the last turn
rests on one. What a fact is, hence what validation asks that was never seen:

    addition    two numbers, in either order
    comparison  two numbers, in either order
    counting    where it starts, where it ends
    memory      a name with a thing that its owner likes
    echo        two words, or a word with the number of times
    sequence    a day, month or letter with before or after, in one way of asking
    opposite    a word, in one way of asking
    color       a thing, in one way of asking; or a thing with a color it may have
    spelling    a word, in one way of asking
    greeting    never held out; they open conversations of the other families

Nothing is random: rows are ordered by a hash of the seed and the row.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from itertools import combinations, permutations, product
from typing import NamedTuple

SPLITS = ("train", "validation")
FRACTION = 8  # one fact in this many is held out
# Conversations of each family: (train, validation).
SIZES = {
    "addition": (1400, 60),
    "comparison": (600, 30),
    "counting": (500, 30),
    "memory": (700, 30),
    "echo": (600, 30),
    "sequence": (800, 40),
    "opposite": (600, 30),
    "color": (600, 30),
    "spelling": (400, 20),
}


class Turn(NamedTuple):
    """A question; its answer as a sentence, and as one word if that makes sense."""

    fact: str
    ask: str
    answer: str
    word: str = ""


def rows(split: str, seed: int = 0) -> list[dict]:
    """All rows of "train" or "validation": {"family": str, "messages": [...]}."""
    found = []
    for family, sizes in SIZES.items():
        talks = (talk for talk in globals()[f"_{family}"]() if _split(talk) == split)
        pool = {_digest(seed, m): m for talk in talks for m in _styles(talk)}
        for key in sorted(pool)[: sizes[SPLITS.index(split)]]:
            found.append((key, {"family": family, "messages": pool[key]}))
    return [row for _, row in sorted(found, key=lambda pair: pair[0])]


@cache
def held_out(fact: str) -> bool:
    return int(_digest("held out", fact), 16) % FRACTION == 0


def _split(talk: list[Turn]) -> str:
    """Held-out facts stay out of train; elsewhere they come last or not at all."""
    out = [bool(turn.fact) and held_out(turn.fact) for turn in talk]
    if not any(out):
        return "train"
    return "validation" if out[-1] else "neither"


def _styles(talk: list[Turn]) -> Iterator[list[dict]]:
    """The conversation as it is, and as the system messages want it."""
    yield _messages(talk)
    if all(turn.word for turn in talk):
        short = [turn._replace(answer=turn.word) for turn in talk]
        yield _messages(short, "Answer in one word.")
        loud = [turn._replace(answer=turn.answer.upper()) for turn in talk]
        yield _messages(loud, "Answer in upper case.")
    elif len(talk) < 3:
        hello = _GREETINGS[int(_digest(talk), 16) % len(_GREETINGS)]
        yield _messages([hello, *talk])


def _messages(talk: list[Turn], system: str = "") -> list[dict]:
    messages = [{"role": "system", "content": system}] if system else []
    for turn in talk:
        messages.append({"role": "user", "content": turn.ask})
        messages.append({"role": "assistant", "content": turn.answer})
    return messages


def _digest(*parts) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# The families. Each yields talks: lists of turns.

_GREETINGS = [
    Turn("", "Hello!", "Hello! How can I help you?"),
    Turn("", "Hi there.", "Hi! What can I do for you?"),
    Turn("", "Good morning.", "Good morning! How can I help you?"),
    Turn("", "Good evening.", "Good evening! How can I help you?"),
    Turn("", "How are you?", "I am fine, thank you."),
    Turn("", "Who are you?", "I am a very small language model."),
]


def _addition():
    for a, b in [*product(range(1, 30), range(1, 10))]:
        c, d = a + b, (a * 7 + b * 3) % 9 + 1
        for ask in ("What is {} plus {}?", "Add {} and {}.", "How much is {} + {}?"):
            for x, y in {(a, b), (b, a)}:
                first = _sum(ask.format(x, y), x, y)
                yield [first]
                yield [first, _sum(f"And plus {d}?", c, d)]


def _sum(ask, a, b):
    fact = f"{min(a, b)} + {max(a, b)}"
    return Turn(fact, ask, f"{a} plus {b} is {a + b}.", f"{a + b}.")


def _comparison():
    for a, b in permutations(range(1, 51), 2):
        fact, low, high = f"{min(a, b)} or {max(a, b)}", min(a, b), max(a, b)
        larger = f"{high} is larger than {low}."
        smaller = f"{low} is smaller than {high}."
        up = Turn(fact, f"Which is larger, {a} or {b}?", larger, f"{high}.")
        down = Turn(fact, f"Which is smaller, {a} or {b}?", smaller, f"{low}.")
        yield [up]
        yield [down]
        yield [up, down._replace(ask="And which is smaller?")]
        yield [down, up._replace(ask="And which is larger?")]


def _counting():
    for start, end in permutations(range(1, 31), 2):
        if not 2 <= abs(start - end) <= 6:
            continue
        step = 1 if end > start else -1
        numbers = ", ".join(map(str, range(start, end + step, step)))
        fact = f"{start} to {end}"
        for ask in ("Count from {} to {}.", "Can you count from {} to {}?"):
            yield [Turn(fact, ask.format(start, end), f"{numbers}.")]


def _memory():
    for name, thing in product(_NAMES, _LIKED):
        fact = f"{name} likes {thing}"
        said = Turn(fact, f"My name is {name} and I like {thing}.", f"Hello, {name}!")
        who = Turn(fact, "What is my name?", f"Your name is {name}.")
        what = Turn(fact, "What do I like?", f"You like {thing}.")
        yield [said]
        yield [said, who]
        yield [said, what]
        yield [said, who, what]
        yield [said, what, who]


def _echo():
    words = [*_COLORS, *_SPELLED]
    for one, two in permutations(words, 2):
        yield [Turn(f"{one} {two}", f"Repeat after me: {one} {two}.", f"{one} {two}")]
    for word, (n, times) in product(words, enumerate(_TIMES, 2)):
        yield [Turn(f"{word} x {n}", f"Say {word} {times}.", " ".join([word] * n))]


def _sequence():
    for kind, names in _SEQUENCES.items():
        for place, name in enumerate(names):
            for side, step in (("after", 1), ("before", -1)):
                if kind == "letter" and not 0 <= place + 2 * step < len(names):
                    continue
                asks = _SEQUENCE_ASKS[kind]
                found = names[(place + step) % len(names)]
                then = names[(place + 2 * step) % len(names)]
                answer = f"{found} comes {side} {name}."
                further = f"{then} comes {side} {found}."
                for k, ask in enumerate(asks):
                    ask = ask.format(side=side, name=name)
                    first = Turn(f"{side} {name} {k}", ask, answer, f"{found}.")
                    fact = f"{side} {found} again"
                    yield [first]
                    yield [first, Turn(fact, f"And {side} that?", further, f"{then}.")]


def _opposite():
    for pair in _OPPOSITES:
        for (word, other), (k, ask) in product(
            permutations(pair.split()), enumerate(_OPPOSITE_ASKS)
        ):
            answer = f"The opposite of {word} is {other}."
            turn = Turn(f"not {word} {k}", ask.format(word), answer, f"{other}.")
            yield [turn]
            back = Turn("", f"And of {other}?", f"The opposite of {other} is {word}.")
            yield [turn, back._replace(fact=f"not {other} again", word=f"{word}.")]


def _color():
    for color, things in _COLORS.items():
        for thing in things.split(", "):
            answer = f"{thing} is {color}.".capitalize()
            for k, ask in enumerate(_COLOR_ASKS):
                fact = f"color of {thing} {k}"
                yield [Turn(fact, ask.format(thing), answer, f"{color}.")]
            for other in _COLORS:
                reply = f"Yes, {thing} is {color}."
                reply = reply if other == color else reply.replace("Yes", "No")
                ask = f"Is {thing} {other}?"
                yield [Turn(f"{thing} {other}", ask, reply, reply[:3].strip(",") + ".")]


def _spelling():
    for word, (k, ask) in product(_SPELLED, enumerate(_SPELLING_ASKS)):
        yield [Turn(f"spell {word} {k}", ask.format(word), "-".join(word) + ".")]
    for one, two in combinations(_SPELLED, 2):
        ask = _SPELLING_ASKS[len(one + two) % len(_SPELLING_ASKS)]
        first = Turn("", ask.format(one), "-".join(one) + ".")
        fact = f"spell {two} again"
        yield [first, Turn(fact, f"And {two}?", "-".join(two) + ".")]


# What they talk about.

_NAMES = (
    "Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Mia Noah".split()
)
_LIKED = "tea coffee milk music books games dogs cats horses cake apples snow".split()
_TIMES = ("twice", "three times", "four times", "five times")
_SPELLED = (
    "cat dog bird fish house tree water bread milk apple book table chair door hand"
    " river stone cloud train ship"
).split()

_SEQUENCES = {
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "month": (
        "January February March April May June July August September October"
        " November December"
    ).split(),
    "letter": list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
}
_SEQUENCE_ASKS = {
    kind: (
        f"What {kind} comes {{side}} {{name}}?",
        f"Which {kind} is {{side}} {{name}}?",
        f"Tell me the {kind} {{side}} {{name}}.",
        "What comes {side} {name}?",
    )
    for kind in _SEQUENCES
}

_OPPOSITES = (
    "hot cold,big small,fast slow,light dark,old young,happy sad,up down,left right,"
    "open closed,full empty,hard soft,high low,long short,loud quiet,near far,"
    "rich poor,strong weak,thick thin,wet dry,wide narrow,day night,good bad,"
    "early late,clean dirty"
).split(",")
_OPPOSITE_ASKS = (
    "What is the opposite of {}?",
    "Tell me the opposite of {}.",
    "Give me the opposite of {}.",
    "Do you know the opposite of {}?",
)

_COLORS = {
    "blue": "the sky, the sea, a blueberry",
    "green": "grass, a leaf, a frog",
    "red": "blood, a tomato, a cherry",
    "yellow": "the sun, a banana, a lemon",
    "white": "snow, milk, salt",
    "black": "coal, the night, a raven",
    "brown": "chocolate, a nut, the earth",
    "orange": "a carrot, a pumpkin, a fox",
}
_COLOR_ASKS = (
    "What color is {}?",
    "Which color is {}?",
    "Tell me the color of {}.",
    "Do you know the color of {}?",
)

_SPELLING_ASKS = (
    "How do you spell {}?",
    "Spell {}.",
    "Spell the word {}.",
    "Can you spell {} for me?",
)
