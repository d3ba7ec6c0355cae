"""The study's own runs (arXiv 2406.09279): which there are, in what order, how large.

    runs(root, workdir) -> [Run, ...]    everything is made before it is used
    show(runs) -> str                    the commands by table, each with its size

What a run is, configs/study/paper.py says; here are the tables that it belongs to, and
the rows of its data. So that a size is never typed in twice, numbers of updates come
from the config and these.
"""

import math
import os
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from absl import flags
from etils import epath
from ml_collections import config_flags

from easylm import sweep
from easylm.errors import parse

CONFIG = "configs/study/paper.py"

# Rows of the files, before those that training drops: the card of
# allenai/tulu-2.5-preference-data at revision 6e87e7ba. Table 1 has the same numbers,
# except 60,908 for ultrafeedback_overall.
PAIRS = {
    "alpaca_farm_gpt4_pref": 19_465,
    "alpaca_farm_human_pref": 9_686,
    "argilla_dpo_mix": 6_750,  # in no table
    "capybara": 7_563,
    "chatbot_arena_2023": 20_465,
    "chatbot_arena_2024": 34_269,
    "helpsteer": 9_270,
    "hh_rlhf": 158_530,
    "hh_rlhf_60k": 60_908,
    "nectar": 180_099,
    "nectar_60k": 60_908,
    "orca_dpo_pairs": 12_859,
    "preference_big_mixture": 259_851,
    "prm800k_pairs_phase2": 6_949,
    "shp_2": 500_000,
    "stack_exchange_60k": 60_908,
    "stack_exchange_paired": 500_000,
    "ultrafeedback_evol_instruct": 10_000,
    "ultrafeedback_false_qa": 2_339,
    "ultrafeedback_flan_v2": 20_939,
    "ultrafeedback_lower_10k": 10_000,
    "ultrafeedback_mean_aspects": 60_908,
    "ultrafeedback_middle_10k": 10_000,
    "ultrafeedback_overall": 58_933,
    "ultrafeedback_sharegpt": 19_948,
    "ultrafeedback_top_10k": 10_000,
    "ultrafeedback_truthful_qa": 811,
    "ultrafeedback_ultrachat": 9_929,
}
# The card of allenai/tulu-2.5-prompts, which rounds: 60.9k, 7.47k, 20k, 101k. The first
# two are those of UltraFeedback's pairs and of the training set of GSM8K.
PROMPTS = {
    "ultrafeedback_prompts": 60_908,
    "gsm8k_prompts": 7_473,
    "math_prompts_20k": 20_000,
    "ultrafeedback_code_math_prompts": 101_000,
}
ROWS = PAIRS | PROMPTS
TRAINED = {"dpo": "pairs", "reward_model": "pairs", "ppo": "prompts"}  # made of what
SHAPES = {"tulu-2-13b": "llama:2-13b", "tulu-2-70b": "llama:2-70b"}

# What a reward model of a table with `judged` goes through, and the pairs of
# RewardBench; the prior sets, which count half, come on top of them. Which prompts the
# study's best-of-16 was about is not known.
JUDGED = {
    "rewardbench": {
        "--data": "reward-bench/data/filtered-*",
        "--prior": "pref-test-sets/data/*",
    },
    "best_of_n": {"--data": "best-of-16/*"},
}
JUDGED_ROWS = {"rewardbench": 2_985, "best_of_n": None}


class Table(NamedTuple):
    title: str
    sweeps: dict[str, tuple[str, ...]]  # sweep: the presets it is run with
    judged: bool = False  # whether its reward models are evaluated


JUDGES = "reward_model", "reward_model_70b"
AGAINST = "ppo", "ppo_70b_rm"
TABLES = (
    Table("Table 1: DPO on 14 data sets of preferences", {"table1": ("dpo",)}),
    Table(
        "Table 2: DPO and PPO on five of them",
        {
            "table2": ("dpo", "reward_model"),
            "table2_ppo": ("ppo_same_prompts",),
            "table5": ("ppo",),  # UltraFeedback
        },
    ),
    Table("Table 3: four reward models", {"table3": (*JUDGES, *AGAINST)}, judged=True),
    Table(
        "Figure 3: prompts of a domain",
        {
            "figure3": (
                *(*AGAINST, "ppo_gsm8k", "ppo_70b_rm_gsm8k"),
                *("ppo_maths", "ppo_70b_rm_maths"),
            )
        },
    ),
    Table(
        "Table 4: remixed prompts",
        {"table4": (*AGAINST, "ppo_mixed", "ppo_70b_rm_mixed")},
    ),
    Table(
        "Table 5: the recipe, without Llama 3",
        {"table5": ("dpo", *AGAINST, "ppo_70b_rm_mixed")},
    ),
    Table("Table 7: parts of UltraFeedback", {"table7": ("dpo",)}),
    Table("Appendix: beta of DPO", {"beta": ("dpo",)}),
    Table(
        "Appendix: KL coefficient against 13B and 70B",
        {"kl": ("ppo",), "kl_70b_rm": ("ppo_70b_rm",)},
    ),
    Table("Table 11: batches of prompts", {"prompt_batch": ("ppo",)}),
    Table("Appendix: three epochs", {"epochs": ("ppo_70b_rm_3_epochs",)}),
)


class Run(NamedTuple):
    """One command. An evaluation trains nothing, and its rows are None if unknown."""

    name: str  # where it is under the workdir: PRESET/POINT, or that and the kind
    kind: str  # of TRAINED or JUDGED
    line: str  # for the shell; a comment if it is finished
    uses: tuple[str, ...]  # models that have to be there: names of runs, or paths
    tables: tuple[str, ...] = ()  # titles; it is listed in the first
    rows: int | None = None
    epochs: int = 0
    per_update: int = 0  # pairs, or answers
    updates: int = 0
    tokens: int = 0  # that there is room for in an update
    trained: int = 0  # parameters


def runs(root: str, workdir: str) -> list[Run]:
    """All runs of the study, those that tables share once."""
    root, workdir = root.rstrip("/"), workdir.rstrip("/")
    found: dict[str, Run] = {}
    for table in TABLES:
        for name, presets in table.sweeps.items():
            for preset in presets:
                for run in _runs_of(name, preset, table.judged, root, workdir, found):
                    tables = (*found.get(run.name, run).tables, table.title)
                    found[run.name] = run._replace(tables=tables)
    return list(found.values())


def updates(config, rows: int) -> int:
    """Of a run over so many rows, if none is dropped.

    Pairs come in groups of items_per_update, the rest of an epoch being the last of
    them; prompts in batches that go on from one epoch to the next.
    """
    if "rollout" in config:
        each = (config.objective.epochs or 1) * (config.objective.minibatches or 1)
        return -(-rows * config.epochs // config.batch) * each
    return -(-rows // config.data.items_per_update) * config.epochs


def show(runs: list[Run]) -> str:
    """A comment and a command for each run, by table, and what it comes to."""
    lines = ["# Unpacking DPO and PPO (arXiv 2406.09279), at the scale of the paper"]
    for table in TABLES:
        lines += ["", f"# {table.title}"]
        here = [run for run in runs if table.title in run.tables]
        for run in here:
            if run.tables[0] == table.title:
                lines += [f"# {run.name}: {_size(run)}", run.line]
        for run in here:
            if run.tables[0] != table.title:
                lines.append(f"# {run.name}: see {run.tables[0].partition(':')[0]}")
    return "\n".join([*lines, "", *_totals(runs)])


def _runs_of(name, preset, judged, root, workdir, found) -> Iterator[Run]:
    given = [f"--config.paper.root={root}", f"--config.paper.runs={workdir}"]
    place = f"{workdir}/{preset}"
    for point in sweep.plan(f"{CONFIG}:{preset}", name, place, given):
        run = _trained(point, preset, workdir, found)
        yield run
        if judged and run.kind == "reward_model":
            for kind in JUDGED:
                yield _judged(run.name, kind, root, workdir)


def _trained(point, preset, workdir, found) -> Run:
    config = _config(point.command)
    rows, uses = _rows(config), [config.init]
    per_update, trained = config.data.items_per_update, _parameters(config)
    batch = config.batch
    if "rollout" in config:
        judge = config.reward.terms.model.model.removeprefix(f"{workdir}/")
        uses.append(judge)
        trained += found[judge].trained  # the value model, which starts from it
        batch = batch * config.rollout.group // (config.objective.minibatches or 1)
        per_update = batch
    return Run(
        name=f"{preset}/{point.name}",
        kind=next(kind for kind in TRAINED if preset.startswith(kind)),
        line=sweep.commands([point]),
        uses=tuple(uses),
        rows=rows,
        epochs=config.epochs,
        per_update=per_update,
        updates=updates(config, rows),
        tokens=batch * config.data.length,
        trained=trained,
    )


def _judged(model: str, kind: str, root: str, workdir: str) -> Run:
    """An evaluation of a reward model, which the script puts into its folder."""
    folder = f"{workdir}/{model}"
    command = ["python", "scripts/eval_reward_model.py", "--model", folder]
    command += ["--kind", kind]
    for flag, path in JUDGED[kind].items():
        command += [flag, f"{root}/data/{path}"]
    done = (epath.Path(folder) / f"eval_{kind}.json").exists()
    line = sweep.commands([sweep.Point(kind, {}, folder, command, done)])
    name = f"{model}/{kind}"
    return Run(name, kind, line, (model,), rows=JUDGED_ROWS[kind])


def _config(command: list[str]):
    """What easylm.train would run."""
    values = flags.FlagValues()
    argv = [word for word in command if word.startswith("--config.")]
    argv = ["train", f"--config={command[command.index('--config') + 1]}", *argv]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    parse(argv, values)
    return values.config


def _rows(config) -> int:
    """Of its data, which are SPLIT-*."""
    source = config.data.mixture.main
    rows = ROWS[os.path.basename(source.path).removesuffix("-*")]
    return min(rows, source.subset or rows)


def _parameters(config) -> int:
    return _count(SHAPES[os.path.basename(config.init)], config.model.head or "lm")


@cache
def _count(shape: str, head: str) -> int:
    import jax  # takes seconds, like the models, and what reads ROWS needs neither

    from easylm.models import base, transformer

    spec = transformer.make(base.config_for(shape, head=head)).spec
    return sum(math.prod(p.shape) for p in jax.tree.leaves(spec, is_leaf=base.is_spec))


def _size(run: Run) -> str:
    if run.kind not in TRAINED:
        return "rows as they are" if run.rows is None else f"{run.rows:,} pairs"
    items = f"{run.rows:,} {TRAINED[run.kind]}"
    epochs = f"{run.epochs} epoch{'s'[: run.epochs > 1]}"
    return (
        f"{items}, {epochs}, {run.per_update} to an update: {run.updates:,} updates of"
        f" up to {run.tokens:,} tokens, {run.trained / 1e9:.1f}B parameters"
    )


def _totals(runs: list[Run]) -> list[str]:
    lines = [f"# Together: {len(runs)} commands"]
    for kind, items in TRAINED.items():
        of = [run for run in runs if run.kind == kind]
        seen = sum(run.rows * run.epochs for run in of)
        tokens = sum(run.updates * run.tokens for run in of)
        lines.append(
            f"# {kind}: {len(of)} runs, {seen:,} {items},"
            f" {sum(run.updates for run in of):,} updates, up to {tokens / 1e9:.1f}B"
            " tokens"
        )
    for kind in JUDGED:
        lines.append(f"# {kind}: {sum(run.kind == kind for run in runs)} evaluations")
    return lines
