"""From what the stages left to the document that report.py and markdown.py show."""

import json
import math
import platform
from pathlib import Path

import numpy as np

from easylm.evals import world as judge
from easylm.evals.stats import bootstrap_interval
from easylm.simulator import world
from easylm.study.pipeline import MINI, Scale, spent

NAMES = {
    "factuality": "Factuality",
    "reasoning": "Reasoning",
    "coding": "Coding",
    "truthfulness": "Truthfulness",
    "safety": "Safety",
    "instructions": "Instructions",
    "average": "Average",
}
KINDS = {
    "fine_grained": "fine-grained ratings",
    "overall": "one overall rating",
    "crowd": "noisy crowd",
    "web": "votes that like length",
    "arena": "users who want any answer",
    "experts": "few experts",
    "mix": "a mix of four",
}
DRAWS = 400  # of the bootstrap


def document(root: str, scale: Scale = MINI) -> dict:
    """Everything that is finished under the root."""
    policies = {
        path.stem: json.loads(path.read_text())
        for path in sorted(Path(root, "evals").glob("*.json"))
    }
    judges = {k: v for k, v in policies.items() if k.startswith("judge")}
    policies = {k: v for k, v in policies.items() if not k.startswith("judge")}
    estimates = {name: estimate(one["observed"]) for name, one in policies.items()}
    cost = spent(root)
    return {
        "title": "Unpacking DPO and PPO, in miniature",
        "lead": _lead(estimates, policies),
        "facts": _facts(root, cost),
        "sections": [
            _world_section(root, scale),
            _data_section(estimates, scale),
            _algorithm_section(estimates, policies, scale),
            _judge_section(judges),
            _optimisation_section(root, judges, scale),
            _samples_section(policies),
            _cost_section(cost),
        ],
    }


def estimate(observed) -> dict[str, dict]:
    """{category: {"mean", "low", "high"}}: 95% over the prompts that were asked."""
    rng = np.random.default_rng(0)
    draws = [judge.summary(observed, rng) for _ in range(DRAWS)]
    return {
        name: {
            "mean": mean,
            "low": float(np.quantile([draw[name] for draw in draws], 0.025)),
            "high": float(np.quantile([draw[name] for draw in draws], 0.975)),
        }
        for name, mean in judge.summary(observed).items()
    }


def difference(a, b, name="average") -> dict:
    """Of two policies, the same prompts being drawn for both."""
    draws = []
    for seed in range(DRAWS):
        one, other = (judge.summary(x, np.random.default_rng(seed)) for x in (a, b))
        draws.append(one[name] - other[name])
    low, high = np.quantile(draws, [0.025, 0.975])
    mean = judge.summary(a)[name] - judge.summary(b)[name]
    return {"mean": mean, "low": float(low), "high": float(high)}


def label(name: str) -> str:
    """What a stage is called in tables."""
    kind, _, rest = name.partition("-")
    if kind == "dpo":
        return f"DPO, {KINDS[rest]}"
    if kind == "ppo":
        size, data, prompts = rest.split("-")
        return f"PPO, {size} reward model, {KINDS[data]}, {prompts} prompts"
    if kind == "judge":
        size, data = rest.split("-")
        return f"{size}, {KINDS[data]}"
    return {
        "pretrain-medium": "Base model",
        "sft-medium": "SFT",
        "grpo": "GRPO, verifiable rewards",
    }[name]


def _lead(estimates, policies) -> str:
    start = estimates["sft-medium"]["average"]["mean"]
    said = [f"Fine-tuning reaches {100 * start:.1f} on average over six categories."]
    others = {n: e["average"]["mean"] for n, e in estimates.items() if _tuned(n)}
    if others:
        best = max(others, key=others.get)
        gap = difference(policies[best]["observed"], policies["sft-medium"]["observed"])
        said.append(
            f"Best is {label(best)}: {100 * others[best]:.1f}, a difference of"
            f" {_signed(gap)} points."
        )
    said.append("Intervals are 95%, over the prompts that were asked; one seed.")
    return " ".join(said)


def _signed(gap) -> str:
    mean, low, high = (100 * gap[key] for key in ("mean", "low", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _tuned(name: str) -> bool:
    return name.split("-")[0] in ("dpo", "ppo", "grpo")


def _facts(root, cost) -> list:
    import jax

    seconds = sum(cost.values())
    return [
        ["command", f"`python scripts/study.py --workdir {root}`"],
        ["hardware", f"{jax.devices()[0].device_kind}, {platform.machine()}"],
        ["versions", f"Python {platform.python_version()}, jax {jax.__version__}"],
        ["time", f"{seconds / 60:.1f} minutes"],
    ]


def _world_section(root, scale) -> dict:
    nodes = [
        ("pretrain", "Text", "60,000 paragraphs of an invented world", 0, 0),
        ("sft", "Fine-tuning", "demonstrations, one in three careless", 1, 0),
        ("answers", "Answers", "four to each prompt, of three writers", 2, 0),
        ("pairs", "Preferences", "simulated annotators", 3, 0),
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
    rows = [
        {"label": family, "cells": [task.prompt, task.good[0]]}
        for family in world.FAMILIES
        for task in world.tasks(family, "test", 1)
    ]
    table = {
        "kind": "table",
        "id": "families",
        "title": "One task of each family, and a good answer",
        "columns": ["prompt", "answer"],
        "higher_is_better": None,
        "rows": rows,
    }
    text = (
        "Everything is invented, so that the truth is known: towns and creatures,"
        " small sums, programs of a tiny language, requests of which some harm. Test"
        " prompts rest on facts that no training prompt rests on."
    )
    return _section("world", "The world", text, figure, table)


def _table(id, title, estimates, names, baseline=None, note="") -> dict:
    rows = [
        {"label": label(name), "cells": [estimates[name][c] for c in NAMES]}
        for name in names
        if name in estimates
    ]
    table = {
        "kind": "table",
        "id": id,
        "title": title,
        "note": note,
        "columns": list(NAMES.values()),
        "percent": True,
        "higher_is_better": True,
        "rows": rows,
    }
    return table | ({} if baseline is None else {"baseline": baseline})


def _data_section(estimates, scale) -> dict:
    names = ["pretrain-medium", "sft-medium", *(f"dpo-{s}" for s in scale.sources)]
    table = _table("table1", "DPO on different preference data", estimates, names, 1)
    text = (
        "The same answers, the same algorithm; what differs is who compared them. As"
        " Table 1 of the paper."
    )
    return _section("data", "Preference data", text, table)


def _algorithm_section(estimates, policies, scale) -> dict:
    tuned = ["sft-medium", *filter(_tuned, estimates)]
    table = _table("table2", "DPO, PPO, and GRPO", estimates, tuned, 0)
    start = policies["sft-medium"]["observed"]
    rows = [
        {
            "label": label(name),
            "points": [
                {"series": "average", **difference(policies[name]["observed"], start)}
            ],
        }
        for name in tuned[1:]
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
    return _section("algorithms", "Algorithms", text, table, forest)


def _judge_section(judges) -> dict:
    rows = []
    for name, found in judges.items():
        right = [x for family in found["right"].values() for x in family]
        low, high = bootstrap_interval(right)
        best = found["best_of_n"]["16"]
        cells = [{"mean": float(np.mean(right)), "low": low, "high": high}]
        cells += [best["gold"], best["gold"] - best["random"]]
        rows.append({"label": label(name), "cells": cells})
    table = {
        "kind": "table",
        "id": "table3",
        "title": "Reward models",
        "note": "Accuracy: the better of two held-out answers has the higher score.",
        "columns": ["Accuracy", "Best of 16", "gain over a random one"],
        "percent": True,
        "higher_is_better": True,
        "rows": rows,
    }
    text = "Two sizes, two kinds of data. As Table 3 of the paper."
    return _section("judges", "Reward models", text, table)


def _optimisation_section(root, judges, scale) -> dict:
    """Proxy and gold against KL."""
    series = []
    for name, found in judges.items():
        points = [
            {"x": math.log(int(n)) - (int(n) - 1) / int(n), "y": line["gold"]}
            for n, line in found["best_of_n"].items()
        ]
        points = [p | {"low": None, "high": None} for p in points]
        series.append({"label": f"best of N, {label(name)}", "points": points})
    for judge_name, prompts in scale.online:
        folder = Path(root, f"ppo-{judge_name}-{prompts}")
        points = _curve(folder)
        if points:
            series.append({"label": f"PPO, {prompts} prompts", "points": points})
    plot = {
        "kind": "plot",
        "id": "overoptimisation",
        "title": "Gold mark against distance from the starting policy",
        "x": {"label": "KL, nats per answer", "log": False},
        "y": {"label": "gold mark"},
        "style": "line",
        "series": series,
    }
    text = (
        "A reward model is a stand-in for what we want. Optimised further, its reward"
        " keeps rising; the gold mark need not."
    )
    return _section("reward-hacking", "Over-optimisation", text, plot)


def _curve(folder: Path) -> list[dict]:
    """Gold of held-out prompts against KL, at each evaluation of a run."""
    path, kl, points = folder / "metrics.jsonl", 0.0, []
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        kl = row.get("kl", row.get("train/kl", kl))
        if "eval/rewards/gold" in row:
            gold = row["eval/rewards/gold"]
            points.append({"x": kl, "y": gold, "low": None, "high": None})
    return points


def _samples_section(policies) -> dict:
    rows = judge.read("tfds:world_prompts:test")
    chosen, seen = [], set()
    for number, row in enumerate(rows):
        if row["family"] not in seen:
            seen.add(row["family"])
            chosen.append(number)
    shown = [name for name in policies if name == "sft-medium" or _tuned(name)]
    good = {
        t.prompt: t.good[0] for f in world.FAMILIES for t in world.tasks(f, "test", 100)
    }
    prompts = [
        {
            "family": rows[i]["family"],
            "prompt": rows[i]["prompt"],
            "reference": good.get(rows[i]["prompt"], ""),
            "answers": [
                _answer(rows[i], name, policies[name]["texts"][i]) for name in shown
            ],
        }
        for i in chosen
    ]
    block = {
        "kind": "samples",
        "id": "answers",
        "title": "One held-out prompt of each family",
        "prompts": prompts,
    }
    return _section("samples", "What they say", "", block)


def _answer(row, name, text) -> dict:
    from easylm.simulator import gold

    score = gold.score(row["family"], row["check"], text)
    return {"model": label(name), "text": text, "score": score}


def _cost_section(cost) -> dict:
    block = {
        "kind": "bars",
        "id": "seconds",
        "title": "Seconds of each stage",
        "x": {"label": "seconds"},
        "rows": [
            {"label": name, "value": seconds, "text": f"{seconds:.0f} s"}
            for name, seconds in cost.items()
            if seconds >= 1
        ],
    }
    return _section("cost", "Cost", "", block)


def _section(id, title, text, *blocks) -> dict:
    """Without the blocks that have nothing to show yet."""
    content = ("rows", "series", "nodes", "prompts")
    shown = [block for block in blocks if any(block.get(key) for key in content)]
    return {"id": id, "title": title, "text": text, "blocks": shown}
