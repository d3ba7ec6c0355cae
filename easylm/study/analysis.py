"""From what the stages left to the document that report.py and markdown.py show.

Each seed is a folder of its own.
"""

import json
import math
import platform
from collections import Counter
from pathlib import Path

import numpy as np

from easylm.evals import world as judge
from easylm.simulator import gold, world
from easylm.study import claims
from easylm.study.estimates import difference, estimate, of_prompts, signed
from easylm.study.names import BASE, START, label, observed, right
from easylm.study.pipeline import Scale, is_policy, spent

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
    policies, judges = _read(roots)
    cost = _cost(roots)
    return {
        "title": "Unpacking DPO and PPO, in miniature",
        "lead": _lead(policies, len(roots)),
        "facts": _facts(command, cost, len(roots)),
        "sections": [
            _claims_section(claims.check(policies, judges)),
            _world_section(),
            _data_section(policies, scale),
            _algorithm_section(policies),
            _judge_section(judges, policies, scale),
            _prompts_section(policies, scale),
            _strength_section(policies, scale),
            _optimisation_section(roots, judges, scale),
            _samples_section(policies),
            _cost_section(cost),
        ],
    }


def _read(roots) -> tuple[dict, dict]:
    """{name: its evaluations, one per seed}: of policies, and of reward models."""
    found = {}
    for root in roots:
        for path in sorted(Path(root, "evals").glob("*.json")):
            found.setdefault(path.stem, []).append(json.loads(path.read_text()))
    is_judge = lambda name: name.startswith("judge")
    return (
        {name: runs for name, runs in found.items() if not is_judge(name)},
        {name: runs for name, runs in found.items() if is_judge(name)},
    )


def _tuned(policies) -> list[str]:
    return [name for name in policies if is_policy(name)]


def _lead(policies, seeds) -> str:
    start = estimate(observed(policies, START))["average"]["mean"]
    said = [f"Fine-tuning reaches {100 * start:.1f} on average over six categories."]
    means = {
        name: estimate(observed(policies, name))["average"]["mean"]
        for name in _tuned(policies)
    }
    if means:
        best = max(means, key=means.get)
        gap = difference(observed(policies, best), observed(policies, START))
        said.append(f"Best is {label(best)}: {100 * means[best]:.1f}, {signed(gap)}.")
    runs = "one seed" if seeds == 1 else f"{seeds} seeds"
    said.append(f"Intervals are 95%, over prompts, with {runs}.")
    return " ".join(said)


def _facts(command, cost, seeds) -> list:
    import jax

    device = jax.devices()[0].device_kind
    return [
        ["command", f"`{command}`"],
        ["hardware", f"{len(jax.devices())} x {device}, {platform.machine()}"],
        ["versions", f"Python {platform.python_version()}, jax {jax.__version__}"],
        ["time", f"{sum(cost.values()) / 60:.1f} minutes"],
        ["seeds", str(seeds)],
    ]


def _claims_section(rows) -> dict:
    block = {"kind": "claims", "id": "verdicts", "title": "Claims", "rows": rows}
    text = (
        "A claim agrees if the whole interval is above 0, disagrees if it is below, and"
        " cannot be told otherwise. So small a world need not behave as language does."
    )
    return _section("claims", "What the papers say, and what came out", text, block)


def _world_section() -> dict:
    nodes = [
        ("pretrain", "Text", "of an invented world", 0, 0),
        ("sft", "Fine-tuning", "demonstrations, one in three careless", 1, 0),
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
    return _section("world", "The world", text, figure, table)


def _table(id, title, policies, names) -> dict:
    """Categories of policies, coloured against the fine-tuned model."""
    found = {name: estimate(observed(policies, name)) for name in names}
    return {
        "kind": "table",
        "id": id,
        "title": title,
        "columns": list(NAMES.values()),
        "percent": True,
        "higher_is_better": True,
        "baseline": names.index(START),
        "rows": [
            {"label": label(name), "cells": [cells[c] for c in NAMES]}
            for name, cells in found.items()
        ],
    }


def _data_section(policies, scale) -> dict:
    names = [BASE, START, *(f"dpo-{source}" for source in scale.sources)]
    names = [name for name in names if name in policies]
    table = _table("table1", "DPO on different preference data", policies, names)
    text = (
        "The same answers and the same algorithm; what differs is who compared them. As"
        " Table 1 of the paper."
    )
    return _section("data", "Preference data", text, table)


def _algorithm_section(policies) -> dict:
    names = [START, *_tuned(policies)]
    start = observed(policies, START)
    rows = [
        {
            "label": label(name),
            "points": [
                {"series": "average", **difference(observed(policies, name), start)}
            ],
        }
        for name in names[1:]
    ]
    forest = {
        "kind": "dots",
        "id": "gains",
        "title": "Gain over fine-tuning, average of six categories",
        "x": {"label": "points"},
        "percent": True,
        "zero": 0.0,
        "rows": rows,
    }
    text = (
        "DPO learns from the pairs, PPO from a reward model that learned from the same"
        " pairs. GRPO is rewarded by what can be verified. As Table 2 of the paper."
    )
    table = _table("table2", "DPO, PPO, and GRPO", policies, names)
    return _section("algorithms", "Algorithms", text, table, forest)


def _judge_section(judges, policies, scale) -> dict:
    rows = []
    for name, runs in judges.items():
        gain = lambda run: np.subtract(
            run["best"]["16"]["gold"], run["best"]["1"]["gold"]
        )
        cells = [of_prompts(runs, right)]
        cells.append(of_prompts(runs, lambda run: run["best"]["16"]["gold"]))
        cells.append(of_prompts(runs, gain))
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
    runs = [f"ppo-{judge}-{p}" for judge, p in scale.online if p == "general"]
    downstream = _few("downstream", "PPO against each of them", policies, runs)
    text = "Two sizes, two kinds of data. As Table 3 of the paper."
    return _section("judges", "Reward models", text, table, downstream)


def _prompts_section(policies, scale) -> dict:
    """Only of reward models that met several kinds of prompts."""
    count = Counter(judge for judge, _ in scale.online)
    runs = [f"ppo-{judge}-{p}" for judge, p in scale.online if count[judge] > 1]
    table = _few("table4", "PPO on different prompts", policies, runs)
    text = (
        "The same reward model, other prompts to answer: of all families, of reasoning"
        " alone, or of all with more of reasoning and coding. As Table 4 of the paper."
    )
    return _section("prompts", "Policy prompts", text, table)


def _strength_section(policies, scale) -> dict:
    names = ["dpo-fine_grained", *(f"dpo-fine_grained-beta={b}" for b in scale.betas)]
    one = "ppo-medium-fine_grained-general"
    runs = [one, *(f"{one}-kl={kl}" for kl in scale.kls)]
    betas = _few(
        "beta", "DPO with another beta (0.1 where none is said)", policies, names
    )
    kls = _few("kl", "PPO with another KL coefficient (0.05)", policies, runs)
    text = "How far a policy may go from where it started."
    return _section("strength", "Beta and KL", text, betas, kls)


def _few(id, title, policies, names) -> dict:
    """A table of those that have run, if that is more than one."""
    there = [name for name in names if name in policies]
    return _table(id, title, policies, [START, *there]) if len(there) > 1 else {}


def _optimisation_section(roots, judges, scale) -> dict:
    """Gold against KL: of the best of N, and along runs of PPO."""
    series = []
    for name, runs in judges.items():
        points = []
        for n in map(int, runs[0]["best"]):
            found = of_prompts(runs, lambda run, n=n: run["best"][str(n)]["gold"])
            x = math.log(n) - (n - 1) / n
            points.append({"x": x, "y": found.pop("mean"), **found, "label": f"N={n}"})
        series.append({"label": f"best of N, {label(name)}", "points": points})
    for judge_name, prompts in scale.online:
        points = _curve(Path(roots[0], f"ppo-{judge_name}-{prompts}"))
        if points:
            series.append({"label": f"PPO, {prompts} prompts", "points": points})
    plot = {
        "kind": "plot",
        "id": "gold",
        "title": "Gold mark against distance from the fine-tuned model",
        "note": "PPO is measured on other prompts than best of N, and with one seed.",
        "x": {"label": "KL, nats per answer", "log": False},
        "y": {"label": "gold mark"},
        "style": "line",
        "series": series,
    }
    text = (
        "A reward model is a stand-in for what we want. Optimised further, its reward"
        " keeps rising; the gold mark need not."
    )
    return _section("over-optimisation", "Over-optimisation", text, plot)


def _curve(folder: Path) -> list[dict]:
    """Gold of held-out prompts against KL, at each evaluation of a run."""
    path, kl, points = folder / "metrics.jsonl", 0.0, []
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        kl = row.get("objective/kl", kl)
        if "eval/rewards/gold" in row:
            gold_mark = row["eval/rewards/gold"]
            points.append({"x": kl, "y": gold_mark, "low": None, "high": None})
    return points


def _samples_section(policies) -> dict:
    rows = judge.read("tfds:world_prompts:test")
    first = {row["family"]: i for i, row in reversed([*enumerate(rows)])}
    shown = [START, *_tuned(policies)]
    good = {t.prompt: t.good[0] for f in first for t in world.tasks(f, "test", 100)}
    prompts = []
    for family, i in first.items():
        texts = {label(name): policies[name][0]["texts"][i] for name in shown}
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
    return _section("samples", "What they say", "", block)


def _cost(roots) -> dict[str, float]:
    """Seconds of each stage, over all seeds."""
    total = {}
    for root in roots:
        for name, seconds in spent(root).items():
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
    return _section("cost", "Cost", "", block)


def _section(id, title, text, *blocks) -> dict:
    """Without the blocks that have nothing to show yet."""
    content = ("rows", "series", "nodes", "prompts")
    shown = [block for block in blocks if any(block.get(key) for key in content)]
    text = text if shown or not blocks else "Not part of this run."
    return {"id": id, "title": title, "text": text, "blocks": shown}
