"""The stages of the study on the embedded world, each done once.

A stage leaves a folder or a file in the root; what is there is not made again, so a
stopped study goes on where it was. Runs are ordinary runs of configs/study/world.py.
work.py makes the stages, several at a time.
"""

import json
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from configs.study import world as presets
from easylm import sweep
from easylm.simulator import annotators
from easylm.study import made
from easylm.study.names import BASE, JUDGE, START

CONFIG = "configs/study/world.py"


WRITERS = (("sft-small", 1.0), (START, 1.0), (START, 1.0), (START, 0.6))


class Scale(NamedTuple):
    """How much of the study is run."""

    prompts: int  # of each family, that preference data is made of
    test: int  # prompts of each family, that policies are judged by,
    candidates: int  # and those of them that best of 16 is for
    sources: tuple[str, ...]  # of preference data, for DPO
    sizes: tuple[str, ...]  # of models
    judges: tuple[tuple[str, str], ...]  # (size, data) of the reward models
    online: tuple[tuple[str, str], ...]  # (judge, prompts) of the runs of PPO
    betas: tuple[float, ...] = ()  # of DPO on fine-grained data, beside the usual one
    kls: tuple[float, ...] = ()  # coefficients of PPO, beside the usual one
    # Who answers the prompts of preference data, and at which temperature.
    writers: tuple[tuple[str, float], ...] = WRITERS
    changes: tuple[tuple[str, dict], ...] = ()  # to presets that begin so
    random: bool = False  # whether GRPO is run with a coin for a reward, too
    seeds: tuple[int, ...] = (0,)


MINI = Scale(
    prompts=150,
    test=100,
    candidates=24,
    sources=("fine_grained", "web"),
    sizes=("small", "medium"),
    judges=(
        *(("small", "fine_grained"), ("small", "mix")),
        *(("medium", "fine_grained"), ("medium", "mix")),
    ),
    online=(("medium-fine_grained", "general"),),
)


SIZES, MIXES = ("medium", "large"), ("fine_grained", "mix")
FULL = Scale(
    prompts=200,
    test=100,
    candidates=60,
    sources=annotators.SOURCES,
    sizes=("small", "medium", "large"),
    judges=(
        *((size, data) for size in SIZES for data in MIXES),
        *(("medium", "web"), ("medium", "arena")),
    ),
    online=(
        *((f"{size}-{data}", "general") for size in SIZES for data in MIXES),
        *(("medium-web", "general"), ("medium-arena", "general")),
        *((f"{s}-fine_grained", p) for s in SIZES for p in ("reasoning", "mixed")),
    ),
    betas=(0.02, 0.3),
    kls=(0.0, 0.2),
    random=True,
    seeds=(0, 1, 2),
)
FEW = {"batch": 8, "rollout.max_new_tokens": 16}
FEW |= {"eval.batch": 8, "eval.mixture.main.max_rows": 8}
SMOKE = Scale(  # does everything run? Nothing is learned
    prompts=4,
    test=4,
    candidates=1,
    sources=("fine_grained",),
    sizes=("medium",),
    judges=(("medium", "fine_grained"),),
    online=(("medium-fine_grained", "general"),),
    writers=((made.CROWD, 1.0),) * 3,
    changes=(
        ("", {"steps": 2, "data.mixture.main.max_rows": 200}),
        ("pretrain", {"model.layers": 1, "model.dim": 64, "model.mlp_dim": 128}),
        *((preset, FEW) for preset in ("ppo", "grpo")),
    ),
)
SCALES = {"mini": MINI, "full": FULL, "smoke": SMOKE}


class Stage(NamedTuple):
    name: str
    weight: float  # seconds that it may take, relative to the others
    make: Callable[[], None]
    done: Callable[[], bool]
    needs: frozenset[str] = frozenset()  # the names of stages that it reads
    command: str = ""  # that does the same, if it is a run


def stages(scale: Scale, root: str, seed: int = 0) -> list[Stage]:
    """In the order in which they need one another."""
    run, write = partial(_run, scale, root, seed), partial(_write, root)
    tuning = _tuning(scale, run)
    found = [*_models(scale, run), *_data(scale, seed, write), *tuning]
    policies = [START, BASE]  # the first is what others are against
    policies += [stage.name for stage in tuning if is_policy(stage.name)]
    for name in policies:
        needs = {name} if name == START else {name, f"evals/{START}.json"}
        needs |= {JUDGE} if is_policy(name) else set()
        file = f"evals/{name}.json"
        found.append(write(file, 12, needs, made.evaluation, scale, seed, name))
    needs, made_by = {START}, made.candidates
    found.append(write("data/candidates.jsonl", 40, needs, made_by, scale, seed))
    for size, data in scale.judges:
        name = f"judge-{size}-{data}"
        needs = {name, "data/held_out.jsonl", "data/candidates.jsonl"}
        found.append(write(f"evals/{name}.json", 6, needs, made.judging, name))
    return found


def is_judged(plan: list[Stage]) -> bool:
    """Whether all that a report is made of is there."""
    return all(stage.done() for stage in plan if stage.name.startswith("evals/"))


def is_policy(name: str) -> bool:
    return name.split("-")[0] in ("dpo", "ppo", "grpo")


def _models(scale, run):
    for size in scale.sizes:
        yield run(f"pretrain-{size}", f"pretrain_{size}", 60)
        steps = {"steps": 325} if size == "small" else {}  # a weak writer
        yield run(f"sft-{size}", "sft", 60, {"world.size": size, **steps})


def _data(scale, seed, write):
    writers = {name for name, _ in scale.writers} - {made.CROWD}
    yield write("data/answers.jsonl", 40, writers, made.answers, scale, seed)
    yield write("data/held_out.jsonl", 30, writers, made.held_out_pairs, scale, seed)
    needs = {"data/answers.jsonl"}
    for source in dict.fromkeys((*scale.sources, *(d for _, d in scale.judges))):
        yield write(f"data/{source}.jsonl", 1, needs, made.pairs, seed, source)
    for name in (*dict.fromkeys(p for _, p in scale.online), "verifiable", "dev"):
        yield write(f"data/prompts-{name}.jsonl", 1, (), made.prompts, name)


def _tuning(scale, run) -> list[Stage]:
    found = []
    for size, data in scale.judges:
        changes = {"world.size": size, "world.data": data}
        found.append(run(f"judge-{size}-{data}", "judge", 25, changes))
    for data in scale.sources:
        found.append(run(f"dpo-{data}", "dpo", 40, {"world.data": data}))
    for beta in scale.betas:
        changes = {"world.data": "fine_grained", "objective.beta": beta}
        found.append(run(f"dpo-fine_grained-beta={beta}", "dpo", 40, changes))
    for judge, prompts in scale.online:
        changes = {"world.judge": judge, "world.prompts": prompts}
        found.append(run(f"ppo-{judge}-{prompts}", "ppo", 100, changes))
    for kl in scale.kls:
        name = f"ppo-medium-fine_grained-general-kl={kl}"
        found.append(run(name, "ppo", 100, {"objective.kl_coef": kl}))
    found.append(run("grpo", "grpo", 80))
    if scale.random:
        changes = {"reward.terms.verifier.verifier": "random"}
        found.append(run("grpo-random", "grpo", 80, changes))
    return found


def _run(scale, root, seed, name, preset, weight, changes=None) -> Stage:
    folder = f"{root}/{name}"
    changes = {"world.root": root, "seed": seed, **(changes or {})}
    for start, more in scale.changes:
        changes |= more if preset.startswith(start) else {}

    def config():
        made = presets.get_config(preset)
        made.update_from_flattened_dict(changes)
        return made.lock()

    def make():
        from easylm import train

        train.train(config(), folder)

    command = ["python", "-m", "easylm.train", "--config", f"{CONFIG}:{preset}"]
    command += ["--workdir", folder]
    command += [f"--config.{key}={value}" for key, value in changes.items()]
    done = lambda: sweep.is_done(folder, config())
    needs = frozenset(_names_under(f"{root}/", config().to_dict()))
    return Stage(name, weight, make, done, needs, shlex.join(command))


def _names_under(root: str, value) -> Iterator[str]:
    """Of the stages whose paths are somewhere in a config."""
    if isinstance(value, dict):
        for part in value.values():
            yield from _names_under(root, part)
    elif isinstance(value, str) and value.startswith(root):
        yield value.removeprefix(root)


def _write(root, name, weight, needs, function, *args) -> Stage:
    """A file of rows, or of one value, that is there whole or not at all."""
    path = Path(root) / name

    def make():
        value = function(root, *args)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        lines = value if path.suffix == ".jsonl" else [value]
        part.write_text("".join(json.dumps(line) + "\n" for line in lines))
        part.rename(path)

    return Stage(name, weight, make, path.exists, frozenset(needs))
