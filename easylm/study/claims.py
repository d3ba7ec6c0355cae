"""What papers claim, and whether it came out here."""

from collections.abc import Mapping

import numpy as np

from easylm.study.estimates import difference, of_prompts, signed
from easylm.study.names import START, label, observed, right

CLAIMS = [  # (claim, source, (better, worse, category))
    (
        "Fine-grained ratings are better data than votes that like length.",
        "Unpacking, Table 1",
        ("dpo-fine_grained", "dpo-web", "average"),
    ),
    (
        "Chats rated by users make a model less safe.",
        "Unpacking, Table 1",
        ("dpo-fine_grained", "dpo-arena", "safety"),
    ),
    (
        "Preference learning raises truthfulness.",
        "Unpacking, Table 1",
        ("dpo-fine_grained", START, "truthfulness"),
    ),
    (
        "PPO is better than DPO on the same data.",
        "Unpacking, abstract",
        ("ppo-medium-fine_grained-general", "dpo-fine_grained", "average"),
    ),
    (
        "PPO reasons better than DPO.",
        "Unpacking, abstract",
        ("ppo-medium-fine_grained-general", "dpo-fine_grained", "reasoning"),
    ),
    (
        "Rewards that can be verified raise reasoning.",
        "Tulu 3 (arXiv 2411.15124)",
        ("grpo", START, "reasoning"),
    ),
]


def check(policies, judges) -> list[dict]:
    """{"claim", "source", "verdict", "evidence"} of each."""
    rows = []
    for claim, source, (better, worse, category) in CLAIMS:
        row = {"verdict": "not run", "evidence": ""}
        if better in policies and worse in policies:
            both = (observed(policies, name) for name in (better, worse))
            gap = difference(*both, category)
            row["verdict"] = verdict(gap)
            row["evidence"] = f"{label(better)} against {label(worse)}: {signed(gap)}"
        rows.append({"claim": claim, "source": source, **row})
    return rows + _of_judges(judges)


def verdict(gap: Mapping) -> str:
    """Of a claim that the difference is above 0."""
    if gap["low"] > 0:
        return "agrees"
    return "disagrees" if gap["high"] < 0 else "cannot tell"


def _of_judges(judges) -> list[dict]:
    """About reward models: their size, their data, and what optimising them does."""
    rows = []
    pairs = [
        (
            "Larger reward models judge better.",
            "medium-fine_grained",
            "small-fine_grained",
        ),
        (
            "A mix of data makes a better reward model.",
            "medium-mix",
            "medium-fine_grained",
        ),
    ]
    for claim, better, worse in pairs:
        a, b = (judges.get(f"judge-{name}") for name in (better, worse))
        if a and b:
            both = list(zip(a, b, strict=False))
            gap = of_prompts(both, lambda x: np.subtract(right(x[0]), right(x[1])))
            evidence = f"accuracy of {better} less that of {worse}: {signed(gap)}"
            row = {"verdict": verdict(gap), "evidence": evidence}
            rows.append({"claim": claim, "source": "Unpacking, Table 3", **row})
    runs = judges.get("judge-medium-fine_grained")
    if runs:  # between two fixed N: the best N would be chosen by the same prompts
        gold = lambda run, n: run["best"][n]["gold"]
        gap = of_prompts(runs, lambda run: np.subtract(gold(run, "4"), gold(run, "16")))
        evidence = f"gold mark at N = 4 less that at 16: {signed(gap)}"
        row = {"verdict": verdict(gap), "evidence": evidence}
        claim = "Optimised further, a reward model's pick gets worse."
        rows.append({"claim": claim, "source": "Gao et al. (arXiv 2210.10760)", **row})
    return rows
