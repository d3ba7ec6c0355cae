"""The over-optimisation picture: proxy and gold against the distance from the start."""

import math
from pathlib import Path

import numpy as np

from easylm.study.blocks import section_of
from easylm.study.estimates import of_prompts
from easylm.study.names import DPO, JUDGE, KINDS, PPO, label
from easylm.study.picks import best_of, ensemble
from easylm.training import metrics


def section(found, roots) -> dict:
    """The proxy's reward and the gold mark against KL, for one reward model."""
    text = (
        "A reward model is a stand-in for what we want. Optimised further, its reward"
        " keeps rising; the gold mark need not. Best of N, DPO and PPO answered the"
        " same held-out prompts; points along a run of PPO are of other prompts, of the"
        " first seed, without an interval."
    )
    plots = [
        _plot("gold", "Gold mark against distance", "gold mark", "golds", found, roots),
        _plot(
            "proxy", "The reward model's own view", "reward", "rewards", found, roots
        ),
        _of_all_judges(found),
    ]
    return section_of("over-optimisation", "Over-optimisation", text, *plots)


def _plot(id, title, axis, column, found, roots) -> dict:
    key = column.removesuffix("s")  # as a sampled answer has it
    runs = found.judges[JUDGE]
    series = [{"label": "best of N", "points": _best(runs, column)}]
    policies_of = {
        "DPO, other data": [f"dpo-{source}" for source in found.scale.sources[1:]],
        "DPO, by beta": [DPO, *(f"{DPO}-beta={b}" for b in found.scale.betas)],
        "PPO, by KL coefficient": [PPO, *(f"{PPO}-kl={k}" for k in found.scale.kls)],
    }
    for name, policies in policies_of.items():
        # Between two strengths there are others; between two annotators is nothing.
        style = "scatter" if name == "DPO, other data" else "line"
        there = [p for p in policies if p in found.sampled]
        points = [_point(found.sampled[p], key, _strength(p)) for p in there]
        if points:
            points.sort(key=_x)
            series.append({"label": name, "points": points, "style": style})
    points = _along(Path(roots[0], PPO), f"eval/rewards/{TERMS[column]}")
    series += [{"label": "PPO, along the run", "points": points}] if points else []
    return {
        "kind": "plot",
        "id": id,
        "title": title,
        "x": {"label": "KL, nats per answer", "log": False},
        "y": {"label": axis},
        "style": "line",
        "series": series,
    }


COUNTS = (1, 2, 4, 8, 16)
TERMS = {"golds": "gold", "rewards": "model"}  # of the reward of PPO
_x = lambda point: point["x"]


def _best(runs, column) -> list[dict]:
    points = []
    for n in COUNTS:
        facts = lambda run: run["picks"]["fact"]
        cell = of_prompts(runs, lambda run, n=n: best_of(run, n, column), facts)
        points.append({"x": _kl(n), "y": cell.pop("mean"), **cell, "label": f"N={n}"})
    return points


def _mean_of(seeds, n) -> dict:
    mean = float(np.mean([pick(n) for pick in seeds]))
    return {"x": _kl(n), "y": mean, "low": None, "high": None}


def _kl(n: int) -> float:
    """Of the best of n from one of them."""
    return math.log(n) - (n - 1) / n


def _point(runs, key, text) -> dict:
    cell = of_prompts(runs, lambda run: run[key], lambda run: run["fact"])
    kl = float(np.mean([np.mean(run["kl"]) for run in runs]))
    return {"x": kl, "y": cell.pop("mean"), **cell, "label": text}


def _strength(name) -> str:
    """What is said at a point: 0.05 of "...-kl=0.05", else who made the data."""
    rest = name.split("-", 1)[1]
    if "=" in rest:
        return rest.rsplit("=")[1]
    return {DPO: "0.1", PPO: "0.05"}.get(name) or KINDS[rest]


def _along(folder: Path, name: str) -> list[dict]:
    """What held-out prompts got against KL, at each evaluation of a run."""
    kl, points = 0.0, []
    for row in metrics.read(folder):
        kl = row.get("objective/kl", kl)
        if name in row:
            points.append({"x": kl, "y": row[name], "low": None, "high": None})
    return points


def _of_all_judges(found) -> dict:
    """Best of N by each reward model, and by several together."""
    picked = {
        label(name): [(lambda n, run=run: best_of(run, n)) for run in runs]
        for name, runs in found.judges.items()
    }
    together = list(zip(*found.judges.values(), strict=True))
    if len(picked) > 1:
        least = [(lambda n, runs=runs: ensemble(runs, "min", n)) for runs in together]
        picked["the least of all"] = least
    series = [
        {"label": name, "points": [_mean_of(seeds, n) for n in COUNTS]}
        for name, seeds in picked.items()
    ]
    return {
        "kind": "plot",
        "id": "best-of-n",
        "title": "Best of N, by each reward model",
        "note": "Without intervals, which are as wide as above.",
        "x": {"label": "KL, nats per answer", "log": False},
        "y": {"label": "gold mark"},
        "style": "line",
        "series": series,
    }
