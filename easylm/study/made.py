"""What the stages between the runs make: answers, pairs, prompts, and judgements."""

import json
from pathlib import Path

import jax

from easylm.evals import best_of_n, distance
from easylm.evals import world as judge
from easylm.evals.judging import by_row
from easylm.evals.scoring import load_scorer
from easylm.simulator import annotators, gold, world
from easylm.simulator.task import conversation
from easylm.study.names import BASE, JUDGE, START
from easylm.training.checkpoint import load_for_inference

CROWD = "people"  # who answer as the demonstrations do
ALL = tuple(world.FAMILIES)
PROMPTS = {  # split, and how many of which families
    "general": ("train", [(ALL, 300)]),
    "reasoning": ("train", [(("reasoning",), 1000)]),
    "mixed": ("train", [(ALL, 300), (("reasoning", "coding"), 1000)]),
    "verifiable": ("train", [(("reasoning", "coding", "instructions"), 300)]),
    "dev": ("dev", [(ALL, 30)]),
}
N = 16  # best of so many
READ = dict(length=256, batch=32)  # by reward models


def asked(part, count) -> list[dict]:
    """Prompts of every family, their checks read."""
    rows = world.prompts(part, count)
    return [row | {"check": json.loads(row["check"])} for row in rows]


def answers(root, scale, seed) -> list[dict]:
    """Several answers to each training prompt, of writers of different strength."""
    return answered(root, asked("train", scale.prompts), scale.writers, seed)


def held_out_pairs(root, scale, seed) -> list[dict]:
    """The best and the worst of such answers to prompts that nobody trains on."""
    rows = answered(root, asked("test", scale.test // 2), scale.writers, seed + 1)
    return annotators.pairs("gold", rows, seed)


def pairs(root, seed, source) -> list[dict]:
    return annotators.pairs(source, _rows(root, "data/answers.jsonl"), seed)


def prompts(root, name) -> list[dict]:
    """For online RL: what is asked, and what is measured by."""
    part, parts = PROMPTS[name]
    rows = []
    for families, count in parts:
        rows += world.prompts(part, count, families=families)
    return [
        {
            "prompt": row["prompt"],
            "verifier": "world",
            "answer": {"family": row["family"], "check": json.loads(row["check"])},
        }
        for row in rows
    ]


def evaluation(root, scale, seed, name) -> dict:
    """What a policy answers to the test prompts, and its marks."""
    rows = asked("test", scale.test)
    loaded = load_for_inference(f"{root}/{name}")
    texts = [one for [one] in judge.answers(loaded, [row["prompt"] for row in rows])]
    reference = texts
    if name != START:
        [first] = _rows(root, f"evals/{START}.json")
        reference = first["texts"]
    observed = judge.observe(rows, texts, reference)
    found = {"summary": judge.summary(observed), "observed": observed, "texts": texts}
    if name not in (START, BASE):
        found["sampled"] = _sampled(root, scale, seed, loaded)
    return found


def _sampled(root, scale, seed, loaded) -> dict[str, list]:
    """Of answers to the prompts of best of N: how far, how good, and to whom."""
    rows = asked("test", scale.candidates)
    prompts = [row["prompt"] for row in rows]
    texts, gone = distance.sampled(
        loaded,
        load_for_inference(f"{root}/{START}"),
        prompts,
        jax.random.key(seed),
        max_new_tokens=judge.LONGEST,
        rows=judge.ROWS,
    )
    said = [conversation(*pair) for pair in zip(prompts, texts, strict=True)]
    return {
        "kl": gone.tolist(),
        "gold": [_gold(row, text) for row, text in zip(rows, texts, strict=True)],
        "reward": load_scorer(f"{root}/{JUDGE}", **READ)(said).tolist(),
        "fact": _facts(rows),
    }


def candidates(root, scale, seed) -> list[dict]:
    """N answers of the policy to test prompts, with their gold."""
    rows = asked("test", scale.candidates)
    rows = answered(root, rows, ((START, 1.0),) * N, seed)
    return [
        {
            "prompt": row["prompt"],
            "fact": row["fact"],
            "candidates": row["answers"],
            "gold": [_gold(row, answer) for answer in row["answers"]],
        }
        for row in rows
    ]


def judging(root, name) -> dict:
    """How often a reward model prefers the better of two, and what it picks of N."""
    score = load_scorer(f"{root}/{name}", **READ)
    held_out = _rows(root, "data/held_out.jsonl")
    sides = [[row[side] for row in held_out] for side in ("chosen", "rejected")]
    chosen, rejected = map(score, sides)
    right = (chosen > rejected) + (chosen == rejected) / 2
    rows = _rows(root, "data/candidates.jsonl")
    scores = score(best_of_n.read(rows))
    rewards = by_row(rows, scores, [N] * len(rows))
    return {
        "right": {"marks": right.tolist(), "fact": _facts(held_out)},
        "picks": {
            "rewards": [one.tolist() for one in rewards],
            "golds": [row["gold"] for row in rows],
            "fact": _facts(rows),
        },
    }


def _gold(row, answer) -> float:
    return gold.score(row["family"], row["check"], answer)


def _facts(rows) -> list[int]:
    """The number of each row's fact, in order of appearance."""
    known = {}
    return [known.setdefault(row["fact"], len(known)) for row in rows]


def answered(root, rows, writers, seed) -> list[dict]:
    """The rows, each with one answer of every writer: (name, temperature)."""
    prompts = [row["prompt"] for row in rows]
    columns, models = [[] for _ in writers], {}
    for name, temperature in dict.fromkeys(writers):
        places = [i for i, one in enumerate(writers) if one == (name, temperature)]
        if name == CROWD:
            said = world.found(rows, len(places), seed)
        else:
            models[name] = models.get(name) or load_for_inference(f"{root}/{name}")
            options = dict(temperature=temperature, samples=len(places), seed=seed)
            said = judge.answers(models[name], prompts, **options)
        for place, column in zip(places, zip(*said, strict=True), strict=True):
            columns[place] = column
    return [
        row | {"answers": list(texts)}
        for row, *texts in zip(rows, *columns, strict=True)
    ]


def _rows(root, name) -> list[dict]:
    return list(map(json.loads, (Path(root) / name).read_text().splitlines()))
