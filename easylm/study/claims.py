"""What papers claim, and whether it came out here.

Every claim is that a sum of measurements is above 0. The study is Unpacking DPO and
PPO, arXiv 2406.09279.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from easylm.study.estimates import Marks, contrast, of_prompts, signed
from easylm.study.names import DPO, JUDGE, PPO, START
from easylm.study.picks import best_of, ensemble


class Claim(NamedTuple):
    text: str
    source: str
    category: str
    weights: dict[str, float]  # of policies
    evidence: str  # what is measured


def ppo(judge="medium-fine_grained", prompts="general") -> str:
    return f"ppo-{judge}-{prompts}"


def _better(a, b, *, by=()) -> dict:
    """a - b, less the difference of the two in `by`."""
    found = {a: 1.0}
    for name, weight in zip((b, *by), (-1.0, -1.0, 1.0), strict=False):
        found[name] = found.get(name, 0.0) + weight
    return found


CLAIMS = [
    Claim(
        "Good preference data raise instruction following.",
        "Unpacking, abstract",
        "instructions",
        _better(DPO, START),
        "DPO on fine-grained ratings, less fine-tuning: instructions",
    ),
    Claim(
        "Good preference data raise truthfulness.",
        "Unpacking, abstract",
        "truthfulness",
        _better(DPO, START),
        "DPO on fine-grained ratings, less fine-tuning: truthfulness",
    ),
    Claim(
        "PPO is better than DPO on the same data.",
        "Unpacking, abstract",
        "average",
        _better(ppo(), DPO),
        "PPO less DPO, fine-grained ratings: average",
    ),
    Claim(
        "PPO reasons better than DPO.",
        "Unpacking, abstract",
        "reasoning",
        _better(ppo(), DPO),
        "PPO less DPO, fine-grained ratings: reasoning",
    ),
    Claim(
        "The data matter more than the algorithm.",
        "Unpacking, abstract",
        "average",
        _better(DPO, "dpo-web", by=(ppo(), DPO)),
        "what DPO gains from ratings over votes, less what PPO gains over DPO: average",
    ),
    Claim(
        "The algorithm matters more than the reward model.",
        "Unpacking, abstract",
        "average",
        _better(ppo(), DPO, by=(ppo("large-fine_grained"), ppo())),
        "what PPO gains over DPO, less what it gains from a larger reward model:"
        " average",
    ),
    Claim(
        "The reward model matters more than the prompts.",
        "Unpacking, abstract",
        "average",
        _better(ppo("large-fine_grained"), ppo(), by=(ppo(prompts="mixed"), ppo())),
        "what PPO gains from a larger reward model, less what it gains from mixed"
        " prompts: average",
    ),
    Claim(
        "Larger reward models make PPO reason better.",
        "Unpacking, abstract",
        "reasoning",
        _better(ppo("large-fine_grained"), ppo()),
        "PPO against the large reward model, less the medium one: reasoning",
    ),
    Claim(
        "Prompts of a domain raise that domain.",
        "Unpacking, Table 4",
        "reasoning",
        _better(ppo("large-fine_grained", "reasoning"), ppo("large-fine_grained")),
        "PPO on prompts of reasoning, less general ones: reasoning",
    ),
    Claim(
        "Fine-grained ratings are better data than votes that like length.",
        "Unpacking, Table 1",
        "average",
        _better(DPO, "dpo-web"),
        "DPO on either: average",
    ),
    Claim(
        "Aspects rated one by one are better data than one rating.",
        "Unpacking, Table 1",
        "average",
        _better(DPO, "dpo-overall"),
        "DPO on either: average",
    ),
    Claim(
        "Chats rated by users make a model less safe than ratings do.",
        "Unpacking, Table 1",
        "safety",
        _better(DPO, "dpo-arena"),
        "DPO on fine-grained ratings, less users: safety",
    ),
    Claim(
        "Few clean labels are better data than many noisy ones.",
        "Unpacking, Table 1",
        "average",
        _better("dpo-experts", "dpo-crowd"),
        "DPO on the few of experts, less the many of a crowd: average",
    ),
    Claim(
        "Rewards that can be verified raise reasoning.",
        "Tulu 3, arXiv 2411.15124",
        "reasoning",
        _better("grpo", START),
        "GRPO, less fine-tuning: reasoning",
    ),
    Claim(
        "Random rewards raise reasoning.",
        "Spurious Rewards, arXiv 2506.10947, of one family of models",
        "reasoning",
        _better("grpo-random", START),
        "GRPO with a coin for a reward, less fine-tuning: reasoning",
    ),
    Claim(
        "Without a price for KL, PPO ends worse.",
        "Coste et al., arXiv 2310.02743",
        "average",
        _better(ppo(), f"{PPO}-kl=0.0"),
        "PPO with a coefficient of 0.05, less 0: average",
    ),
]


def check(marks: Mapping[str, Marks], judges) -> list[dict]:
    """{"claim", "source", "verdict", "evidence"} of each.

    Of policies, marks; of reward models, {name: its judgements, one for each seed}.
    """
    rows = []
    for claim in CLAIMS:
        gap = None
        if claim.weights.keys() <= marks.keys():
            terms = [(weight, marks[name]) for name, weight in claim.weights.items()]
            gap = contrast(terms, claim.category)
        rows.append(_row(claim.text, claim.source, claim.evidence, gap))
    return rows + _of_judges(judges)


def verdict(gap: Mapping) -> str:
    """Of a claim that something is above 0."""
    if gap["low"] > 0:
        return "agrees"
    return "disagrees" if gap["high"] < 0 else "cannot tell"


def _row(claim, source, evidence, gap) -> dict:
    said = {"verdict": "not run", "evidence": ""}
    if gap:
        said = {"verdict": verdict(gap), "evidence": f"{evidence}: {signed(gap)}"}
    return {"claim": claim, "source": source, **said}


def _of_judges(judges) -> list[dict]:
    """About reward models: their size, their data, and what optimising them does."""
    rows = []
    sizes = ("large", "medium", "small")
    two = [s for s in sizes if f"judge-{s}-fine_grained" in judges][:2]
    if len(two) == 2:
        names = [f"judge-{size}-fine_grained" for size in two]
        evidence = f"accuracy of the {two[0]} one, less the {two[1]} one"
        gap = _accuracy(judges, *names)
        rows.append(
            _row(
                "Larger reward models judge better.",
                "Unpacking, Table 3",
                evidence,
                gap,
            )
        )
    if JUDGE in judges and "judge-medium-mix" in judges:
        gap = _accuracy(judges, "judge-medium-mix", JUDGE)
        evidence = "accuracy with a mix of four, less fine-grained ratings alone"
        claim = "A mix of data makes a better reward model."
        rows.append(_row(claim, "Unpacking, Table 3", evidence, gap))
    if JUDGE in judges:  # two fixed N: the best N would be chosen by the same prompts
        runs = judges[JUDGE]
        gap = of_prompts(
            runs,
            lambda run: np.subtract(best_of(run, 4), best_of(run, 16)),
            _of_picks,
        )
        evidence = "gold mark of the best of 4, less the best of 16"
        claim = "Optimised further, a reward model's pick gets worse."
        rows.append(_row(claim, "Gao et al., arXiv 2210.10760", evidence, gap))
    if len(judges) > 2:
        for how, name in (("mean", "mean"), ("min", "worst case")):
            gap = of_prompts(
                list(zip(*judges.values(), strict=True)),
                lambda runs, how=how: np.subtract(
                    ensemble(runs, how, 16),
                    np.mean([best_of(run, 16) for run in runs], axis=0),
                ),
                lambda runs: _of_picks(runs[0]),
            )
            evidence = f"gold mark of the best of 16 by the {name} of {len(judges)}"
            evidence += " reward models, less that by one of them"
            claim = f"The {name} of several reward models picks better than one."
            rows.append(_row(claim, "Coste et al., arXiv 2310.02743", evidence, gap))
    return rows


def _accuracy(judges, better, worse) -> dict:
    marks = lambda run: run["right"]["marks"]
    return of_prompts(
        list(zip(judges[better], judges[worse], strict=False)),
        lambda pair: np.subtract(*map(marks, pair)),
        lambda pair: pair[0]["right"]["fact"],
    )


def _of_picks(run):
    return run["picks"]["fact"]
