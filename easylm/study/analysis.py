"""From what the stages left to the document that report.py and markdown.py show.

Each seed is a folder of its own.
"""

import platform
from collections import Counter
from importlib.metadata import version

import numpy as np

from easylm.evals import stats
from easylm.evals import world as judge
from easylm.simulator import gold, world
from easylm.study import claims, optimisation, work
from easylm.study.blocks import section_of
from easylm.study.estimates import difference, estimate, of_prompts, signed
from easylm.study.found import read
from easylm.study.made import asked
from easylm.study.names import (
    BASE,
    DPO,
    GRPO,
    PPO,
    START,
    label,
)
from easylm.study.picks import best_of
from easylm.study.pipeline import Scale, is_policy

NAMES = {
    "factuality": "Factuality",
    "reasoning": "Reasoning",
    "coding": "Coding",
    "truthfulness": "Truthfulness",
    "safety": "Safety",
    "instructions": "Instructions",
    "average": "Average",
}


def document(roots: list[str], scale: Scale, command: str) -> dict:
    """Everything that is finished, over the folders of all seeds."""
    found, cost = read(roots, scale), _cost(roots)
    sections = [
        _claims_section(claims.check(found.marks, found.judges)),
        _world_section(),
        _data_section(found),
        _algorithm_section(found),
        _judge_section(found),
        _prompts_section(found),
        _strength_section(found),
        optimisation.section(found, roots),
        _samples_section(found),
        _cost_section(cost),
    ]
    return {
        "title": "Unpacking DPO and PPO, in miniature",
        "lead": _lead(found, len(roots)),
        "facts": _facts(command, cost, roots),
        "sections": [section for section in sections if section["blocks"]],
    }


def _tuned(found) -> list[str]:
    return [name for name in found.seen if is_policy(name)]


def _lead(found, seeds) -> str:
    """Of three that are always the same ones: the best of many would be too good."""
    average = lambda name: f"{100 * found.marks[name].mean['average']:.1f}"
    said = []
    for name in (DPO, PPO, GRPO):
        if name in found.marks:
            gap = signed(difference(found.marks[name], found.marks[START]))
            said.append(f"{name.split('-')[0].upper()} {average(name)} ({gap})")
    runs = "one seed" if seeds == 1 else f"{seeds} seeds"
    return (
        f"On average of six categories fine-tuning reaches {average(START)},"
        f" {', '.join(said)}. Intervals are 95%, over {runs} and what the prompts rest"
        " on."
    )


def _facts(command, cost, roots) -> list:
    devices = {device for root in roots for device in work.devices(root)}
    machine = f"{platform.machine()}, {len(work.cores())} cores"
    return [
        ["command", f"`{command}`"],
        ["hardware", f"{', '.join(sorted(devices))}; {machine}"],
        ["versions", f"Python {platform.python_version()}, jax {version('jax')}"],
        ["time", f"{sum(cost.values()) / 60:.1f} minutes, if one stage ran at a time"],
        ["seeds", str(len(roots))],
    ]


def _claims_section(rows) -> dict:
    there = [row for row in rows if row["verdict"] != "not run"]
    block = {"kind": "claims", "id": "verdicts", "title": "Claims", "rows": there}
    text = (
        "A claim agrees if the whole interval is above 0, disagrees if it is below, and"
        " cannot be told otherwise. So small a world need not behave as language does."
    )
    if len(there) < len(rows):
        text += f" {len(rows) - len(there)} more are for `make study-full`."
    return section_of("claims", "What the papers say, and what came out", text, block)


def _world_section() -> dict:
    nodes = [
        ("pretrain", "Text", "of an invented world", 0, 0),
        ("sft", "Fine-tuning", "examples, nearly half of them careless", 1, 0),
        ("answers", "Answers", "four to each prompt, of three writers", 2, 0),
        ("pairs", "Preferences", "of simulated annotators", 3, 0),
        ("dpo", "DPO", "straight from the pairs", 4, 0),
        ("judge", "Reward models", "two sizes, two mixes of data", 4, 1),
        ("ppo", "PPO", "against a reward model", 5, 1),
        ("grpo", "GRPO", "against verifiers", 5, 2),
        ("gold", "Gold marks", "six categories; training never sees them", 6, 0.5),
    ]
    edges = "pretrain-sft sft-answers answers-pairs pairs-dpo pairs-judge judge-ppo"
    edges += " sft-grpo dpo-gold ppo-gold grpo-gold"
    keys = ("id", "label", "detail", "column", "row")
    figure = {
        "kind": "pipeline",
        "id": "pipeline",
        "title": "The stages",
        "nodes": [dict(zip(keys, node, strict=True)) for node in nodes],
        "edges": [edge.split("-") for edge in edges.split()],
    }
    table = {
        "kind": "table",
        "id": "families",
        "title": "One task of each family, and a good answer",
        "columns": ["prompt", "answer"],
        "higher_is_better": None,
        "rows": [
            {"label": family, "cells": [task.prompt, task.good[0]]}
            for family in world.FAMILIES
            for task in world.tasks(family, "test", 1)
        ],
    }
    text = (
        "Everything is invented, so that the truth is known: towns and creatures,"
        " small sums, programs of a tiny language, requests of which some harm. Test"
        " prompts rest on facts that no training prompt rests on. Instructions are the"
        " mean of obeyed constraints and a length-controlled win rate against the"
        " fine-tuned model; safety is the F1 of refusals."
    )
    return section_of("world", "The world", text, figure, table)


def _table(id, title, found, names) -> dict:
    """Categories of policies, coloured against the fine-tuned model."""
    there = [name for name in names if name in found.marks]
    return {
        "kind": "table",
        "id": id,
        "title": title,
        "columns": list(NAMES.values()),
        "percent": True,
        "higher_is_better": True,
        "baseline": there.index(START),
        "rows": [
            {
                "label": label(name),
                "cells": [estimate(found.marks[name], category) for category in NAMES],
            }
            for name in there
        ],
    }


def _data_section(found) -> dict:
    names = [BASE, START, *(f"dpo-{source}" for source in found.scale.sources)]
    table = _table("table1", "DPO on different preference data", found, names)
    text = (
        "The same answers and the same algorithm; what differs is who compared them. As"
        " Table 1 of the paper."
    )
    return section_of("data", "Preference data", text, table)


def _algorithm_section(found) -> dict:
    names = _tuned(found)
    gains = {name: difference(found.marks[name], found.marks[START]) for name in names}
    gains = dict(sorted(gains.items(), key=lambda item: -item[1]["mean"]))
    forest = {
        "kind": "dots",
        "id": "gains",
        "title": "Gain over fine-tuning, average of six categories",
        "x": {"label": "points"},
        "percent": True,
        "zero": 0.0,
        "rows": [
            {"label": label(name), "points": [{"series": "average", **gain}]}
            for name, gain in gains.items()
        ],
    }
    text = (
        "DPO learns from the pairs, PPO from a reward model (RM) that learned from the"
        " same pairs; GRPO is rewarded by what can be verified. As Table 2 of the"
        " paper."
    )
    table = _table("table2", "DPO, PPO, and GRPO", found, [START, DPO, PPO, GRPO])
    return section_of("algorithms", "Algorithms", text, table, forest, _seeds(found))


def _seeds(found) -> dict:
    """Of several seeds: the robust mean, and how often one is better (S039)."""
    scores = {
        name: np.array(
            [[judge.summary(run)[c] for c in judge.CATEGORIES] for run in runs]
        )
        for name, runs in found.seen.items()
    }
    rows = []
    for name in (START, *_tuned(found)):
        if len(scores[name]) < 2:
            return {}
        low, high = stats.stratified_bootstrap(scores[name])
        cell = {"mean": stats.iqm(scores[name]), "low": low, "high": high}
        better = stats.probability_of_improvement(scores[name], scores[START])
        rows.append({"label": label(name), "cells": [cell, better]})
    return {
        "kind": "table",
        "id": "seeds",
        "title": "Over seeds and categories",
        "note": "The mean of the middle half of all seeds and categories, with an"
        " interval over seeds; and how often a run is better than one of fine-tuning.",
        "columns": ["Interquartile mean", "Probability of improvement"],
        "percent": True,
        "higher_is_better": True,
        "rows": rows,
    }


def _judge_section(found) -> dict:
    facts = lambda run: run["picks"]["fact"]
    rows = []
    for name, runs in found.judges.items():
        right = lambda run: run["right"]["marks"]
        gain = lambda run: np.subtract(best_of(run, 16), best_of(run, 1))
        cells = [of_prompts(runs, right, lambda run: run["right"]["fact"])]
        cells.append(of_prompts(runs, lambda run: best_of(run, 16), facts))
        cells.append(of_prompts(runs, gain, facts))
        rows.append({"label": label(name), "cells": cells})
    table = {
        "kind": "table",
        "id": "table3",
        "title": "Reward models",
        "note": "Accuracy: the better of two held-out answers has the higher score.",
        "columns": ["Accuracy", "Best of 16", "against a random one"],
        "percent": True,
        "higher_is_better": True,
        "rows": rows,
    }
    online = found.scale.online
    runs = [f"ppo-{judge}-{p}" for judge, p in online if p == "general"]
    downstream = _few("downstream", "PPO against each of them", found, runs)
    text = "Different sizes, different data. As Table 3 of the paper."
    return section_of("judges", "Reward models", text, table, downstream)


def _prompts_section(found) -> dict:
    """Only of reward models that met several kinds of prompts."""
    count = Counter(judge for judge, _ in found.scale.online)
    runs = [f"ppo-{judge}-{p}" for judge, p in found.scale.online if count[judge] > 1]
    table = _few("table4", "PPO on different prompts", found, runs)
    text = (
        "The same reward model, other prompts to answer: of all families, of reasoning"
        " alone, or of all with more of reasoning and coding. As Table 4 of the paper."
    )
    return section_of("prompts", "Policy prompts", text, table)


def _strength_section(found) -> dict:
    names = [DPO, *(f"{DPO}-beta={b}" for b in found.scale.betas)]
    runs = [PPO, *(f"{PPO}-kl={kl}" for kl in found.scale.kls)]
    title = "DPO with another beta (0.1 where none is said)"
    betas = _few("beta", title, found, names)
    kls = _few("kl", "PPO with another KL coefficient (0.05)", found, runs)
    text = "How far a policy may go from where it started."
    return section_of("strength", "Beta and KL", text, betas, kls)


def _few(id, title, found, names) -> dict:
    """A table of those that have run, if that is more than one."""
    there = [name for name in names if name in found.marks]
    return _table(id, title, found, [START, *there]) if len(there) > 1 else {}


def _samples_section(found) -> dict:
    rows = asked("test", found.scale.test)
    first = {row["family"]: i for i, row in reversed([*enumerate(rows)])}
    shown = [name for name in (START, DPO, PPO, GRPO) if name in found.texts]
    good = {t.prompt: t.good[0] for f in first for t in world.tasks(f, "test", 100)}
    prompts = []
    for family, i in first.items():
        texts = {label(name): found.texts[name][0][i] for name in shown}
        mark = lambda text, row=rows[i]: gold.score(row["family"], row["check"], text)
        prompts.append(
            {
                "family": family,
                "prompt": rows[i]["prompt"],
                "reference": good[rows[i]["prompt"]],
                "answers": [
                    {"model": name, "text": text, "score": mark(text)}
                    for name, text in texts.items()
                ],
            }
        )
    title = "One held-out prompt of each family"
    block = {"kind": "samples", "id": "answers", "title": title, "prompts": prompts}
    return section_of("samples", "What they say", "", block)


def _cost(roots) -> dict[str, float]:
    """Seconds of each stage, over all seeds."""
    total = {}
    for root in roots:
        for name, seconds in work.spent(root).items():
            total[name] = total.get(name, 0.0) + seconds
    return total


def _cost_section(cost) -> dict:
    rows = [
        {"label": name, "value": seconds, "text": f"{seconds:.0f} s"}
        for name, seconds in cost.items()
        if seconds >= 1
    ]
    block = {
        "kind": "bars",
        "id": "seconds",
        "title": "Seconds of each stage",
        "x": {"label": "seconds"},
        "rows": rows,
    }
    return section_of("cost", "Cost", "", block)
