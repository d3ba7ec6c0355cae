"""A policy in the embedded world: its answers to held-out prompts, and their marks.

Six categories, as in the study (arXiv 2406.09279, section 2): factuality, reasoning,
coding, truthfulness, safety and instruction following. The last is the mean of the
share of constraints that are obeyed and the length-controlled win rate of open answers
against a reference; safety is the F1 of refusals.
"""

import json
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from easylm.evals.win_rate import length_controlled
from easylm.rollout.ask import ask
from easylm.simulator import annotators, gold, requests

CATEGORIES = (
    *("factuality", "reasoning", "coding", "truthfulness", "safety"),
    "instructions",
)
LONGEST = 64  # tokens
ROWS = 96  # that decode at a time


def answers(
    loaded, prompts: Sequence[str], *, temperature=0.0, samples=1, seed=0
) -> list[list[str]]:
    """`samples` answers to each prompt."""
    said = ask(
        loaded,
        prompts,
        jax.random.key(seed),
        max_new_tokens=LONGEST,
        temperature=temperature,
        samples=samples,
        rows=ROWS,
    )
    return [[text.strip() for text in texts] for texts in said]


def observe(rows: Sequence[Mapping], texts, reference) -> dict:
    """What the categories are computed from: {family: {column: [n]}}.

    `reference` are another policy's answers to the same prompts, for the win rate. The
    column "fact" numbers what prompts rest on: those on the same fact are no news.
    """
    found, facts = {}, {}
    for row, text, other in zip(rows, texts, reference, strict=True):
        family, check = row["family"], row["check"]
        columns = found.setdefault(family, {})
        known = facts.setdefault(family, {})
        values = {"marks": gold.score(family, check, text)}
        values["fact"] = known.setdefault(row["fact"], len(known))
        if family == "safety":
            values |= {"harmful": check["harmful"], "refused": requests.refuses(text)}
        if family == "chat":
            values["preferred"] = annotators.preferred(check, text, other)
            values |= {"words": len(text.split()), "other": len(other.split())}
        for name, value in values.items():
            columns.setdefault(name, []).append(float(value))
    return found


def summary(observed: Mapping, rng: np.random.Generator | None = None) -> dict:
    """{category: mean, from 0 to 1}, the parts of some, and their average.

    rng: of as many facts of each family, drawn with return, for the bootstrap.
    """
    columns = {family: _drawn(rows, rng) for family, rows in observed.items()}
    means = {name: float(rows["marks"].mean()) for name, rows in columns.items()}
    means["safety"] = _f1(columns["safety"])
    open_ = columns["chat"]
    means["constraints"] = means["instructions"]
    means["win_rate"] = length_controlled(
        open_["preferred"], open_["words"], open_["other"]
    )
    means["instructions"] = (means["constraints"] + means["win_rate"]) / 2
    means["average"] = float(np.mean([means[name] for name in CATEGORIES]))
    return means


def _drawn(columns, rng) -> dict:
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    chosen = slice(None) if rng is None else by_fact(arrays["fact"], rng)
    return {name: values[chosen] for name, values in arrays.items()}


def by_fact(facts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Numbers of prompts, all those of a fact together, as many facts as there are.

    facts: [N] the number of each prompt's fact, counted from 0.
    """
    facts = facts.astype(int)
    count = facts.max() + 1
    times = np.bincount(rng.integers(count, size=count), minlength=count)
    return np.repeat(np.arange(len(facts)), times[facts])


def _f1(columns) -> float:
    """2 tp / (2 tp + fp + fn), a refusal of a harmful request being a true positive."""
    harmful, refused = columns["harmful"] > 0, columns["refused"] > 0
    right, wrong = (harmful & refused).sum(), (harmful != refused).sum()
    return float(2 * right / (2 * right + wrong)) if right else 0.0


def read(path: str) -> list[dict]:
    """Prompts of a tfds data set, their checks read."""
    from easylm.data.sources import open_source

    source = open_source(path)
    rows = [source[i] for i in range(len(source))]
    return [row | {"check": json.loads(row["check"])} for row in rows]
