"""Simulated annotators: from several answers to a prompt to a pair, good or bad data.

One function per kind of data in the study, by what is known of its faults:

    fine_grained   four aspects rated one by one, averaged (UltraFeedback)
    overall        one rating of everything, noisier (UltraFeedback, overall)
    crowd          one choice between two answers, wrong one time in four (HH-RLHF)
    web            votes that like length more than truth (SHP-2, StackExchange)
    arena          users who want an answer whatever they asked for (Chatbot Arena)
    experts        the right order, of few answers (HelpSteer, PRM800K)

An annotator is given what it is asked to rate, not the gold reward; the aspects it
sees are what they are (`aspects`), and then come its noise and its taste.
"""

import math
from collections.abc import Mapping, Sequence

from easylm.simulator import gold, knowledge, programs, requests
from easylm.simulator.questions import UNKNOWN
from easylm.simulator.task import chance, conversation

SOURCES = ("fine_grained", "overall", "crowd", "web", "arena", "experts")
OTHERS = ("crowd", "web", "experts")  # in a mix, beside fine-grained ratings
FEW = 6  # one prompt in so many is seen by the experts


def pairs(source: str, rows: Sequence[Mapping], seed: int = 0) -> list[dict]:
    """Rows of {"family", "fact", "prompt", "check", "answers"} -> {"family", "fact",
    "chosen", "rejected"}; where an annotator sees no difference there is no pair.

    "mix" is what the study's is made of: all fine-grained ratings, and as much again of
    other sources, here a third of the prompts each.
    """
    if source == "mix":
        parts = ((name, rows[i :: len(OTHERS)]) for i, name in enumerate(OTHERS))
        parts = (("fine_grained", rows), *parts)
        return [pair for name, part in parts for pair in pairs(name, part, seed)]
    choose = globals()[f"_{source}"]
    found = []
    for row in rows:
        rng = chance(source, seed, row["prompt"])
        answers = list(dict.fromkeys(row["answers"]))
        chosen = choose(row, answers, rng) if len(answers) > 1 else None
        if chosen:
            good, bad = (conversation(row["prompt"], text) for text in chosen)
            about = {name: row[name] for name in ("family", "fact")}
            found.append({**about, "chosen": good, "rejected": bad})
    return found


def aspects(family: str, check: Mapping, answer: str) -> dict[str, float]:
    """What a careful reader sees, each from 0 to 1."""
    right = gold.score(family, check, answer)
    claims = knowledge.claims(answer)
    true = all(map(knowledge.is_true, claims))
    unsure = answer.startswith(UNKNOWN.removesuffix("."))
    seen = {
        "helpfulness": right,
        "honesty": 1.0 if true or unsure else 0.0,
        "instruction_following": float(_on_topic(family, check, answer, claims)),
        "truthfulness": float(true) if claims else right,
    }
    if family == "reasoning":
        seen["helpfulness"] = (right + ("=" in answer)) / 2
    if family == "safety":
        seen["honesty"] = seen["truthfulness"] = 1.0
    return seen


def _on_topic(family, check, answer, claims) -> bool:
    if family == "instructions":
        return gold.score(family, check, answer) > 0
    if family == "coding":
        return programs.is_program(answer)
    if family == "reasoning":
        return "The answer is" in answer
    if family == "safety":
        return requests.refuses(answer) == check["harmful"]
    return bool(claims) and all(c.subject == check["subject"] for c in claims)


def _fine_grained(row, answers, rng):
    def rating(answer):
        seen = aspects(row["family"], row["check"], answer).values()
        return sum(_rounded(1 + 4 * x + rng.gauss(0, 0.5), 5) for x in seen) / 4

    return _best_and_another(answers, rating, rng)


def _overall(row, answers, rng):
    def rating(answer):
        seen = aspects(row["family"], row["check"], answer).values()
        return _rounded(1 + 9 * sum(seen) / 4 + rng.gauss(0, 2), 10)

    return _best_and_another(answers, rating, rng)


def _crowd(row, answers, rng):
    two = _two(row, answers, rng, lambda a: _overall_of(row, a))
    return two and (two[::-1] if rng.random() < 0.25 else two)


def _web(row, answers, rng):
    like = lambda a: _overall_of(row, a) + 1.5 * _length(a) + rng.gauss(0, 0.5)
    return _two(row, answers, rng, like)


def _arena(row, answers, rng):
    def like(answer):
        refused = requests.refuses(answer) or answer.startswith(UNKNOWN)
        good = 0.5 if row["family"] == "safety" else _overall_of(row, answer)
        return 2 * good - 2 * refused + 0.5 * _length(answer) + rng.gauss(0, 0.4)

    return _two(row, answers, rng, like)


def _experts(row, answers, rng):
    if rng.randrange(FEW):
        return None
    return _best_and_another(answers, lambda a: _overall_of(row, a), rng)


def _gold(row, answers, rng):
    """The best and the worst, as they are: to judge reward models by."""
    mark = lambda a: gold.score(row["family"], row["check"], a)
    best, worst = max(answers, key=mark), min(answers, key=mark)
    return (best, worst) if mark(best) > mark(worst) else None


def _overall_of(row, answer) -> float:
    return sum(aspects(row["family"], row["check"], answer).values()) / 4


def _best_and_another(answers, rating, rng):
    rated = [(rating(answer), answer) for answer in answers]
    best = max(rated)
    others = [answer for value, answer in rated if value < best[0]]
    return (best[1], rng.choice(others)) if others else None


def _two(row, answers, rng, like):
    """The better liked of two, and the other."""
    two = rng.sample(answers, 2)
    a, b = map(like, two)
    if a == b:
        return None
    return tuple(two if a > b else two[::-1])


def _length(answer: str) -> float:
    return math.log(1 + len(answer.split()))


def _rounded(rating: float, highest: int) -> int:
    return min(max(round(rating), 1), highest)


def preferred(check: Mapping, answer: str, other: str) -> float:
    """How likely a judge of open answers prefers the first: it likes length, too."""
    gap = gold.quality(check, answer) - gold.quality(check, other)
    gap += _length(answer) - _length(other)
    return 1 / (1 + math.exp(-gap))
