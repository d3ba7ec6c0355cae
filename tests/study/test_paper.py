"""The runs of the study at its own scale: the points, the sizes, the order. No data."""

import json
import os
import re
import shlex
from collections import Counter
from math import ceil

import pytest

from easylm import sweep
from easylm.data import formats
from easylm.errors import UserError
from easylm.study import paper
from tests import test_configs as published
from tests.data import toy

ROOT, WORK = "/data/study", "/data/study/my runs"

# Tables 1, 2 and 6 of the study, and the splits of its data set.
TABLE_1 = {
    "shp_2": 500_000,
    "stack_exchange_paired": 500_000,
    "prm800k_pairs_phase2": 6_949,
    "chatbot_arena_2023": 20_465,
    "chatbot_arena_2024": 34_269,
    "alpaca_farm_human_pref": 9_686,
    "hh_rlhf": 158_530,
    "helpsteer": 9_270,
    "alpaca_farm_gpt4_pref": 19_465,
    "capybara": 7_563,
    "orca_dpo_pairs": 12_859,
    "nectar": 180_099,
    "ultrafeedback_overall": 60_908,
    "ultrafeedback_mean_aspects": 60_908,
}
UF, MIX = "ultrafeedback_mean_aspects", "preference_big_mixture"
TABLE_2 = ["stack_exchange_60k", "chatbot_arena_2023", "hh_rlhf_60k", "nectar_60k", UF]
TABLE_6 = ["helpsteer", "prm800k_pairs_phase2", *set(TABLE_2) - {"chatbot_arena_2023"}]


@pytest.fixture(scope="module")
def runs():
    return paper.runs(f"{ROOT}/", WORK)


@pytest.fixture(scope="module")
def configs(runs):
    """The configs of all runs that train, as their commands would make them."""
    commands = {r.name: shlex.split(r.line) for r in runs if r.kind in paper.TRAINED}
    return {name: paper._config(command) for name, command in commands.items()}


def in_table(runs, title, kind=""):
    """The names of the table's runs, without what stands before the data."""
    found = [r for r in runs if title in [t.partition(":")[0] for t in r.tables]]
    return [r.name for r in found if r.kind == kind or not kind]


def by_data(kind, splits):
    return {f"{kind}/data={split}" for split in splits}


# Which runs there are


def test_a_table_has_the_runs_of_the_study(runs):
    assert set(in_table(runs, "Table 1")) == by_data("dpo", TABLE_1)
    assert len(in_table(runs, "Table 2")) == 3 * len(TABLE_2)
    assert set(in_table(runs, "Table 2", "dpo")) == by_data("dpo", TABLE_2)
    models = by_data("reward_model", TABLE_2)
    assert set(in_table(runs, "Table 2", "reward_model")) == models
    online = by_data("ppo_same_prompts", TABLE_2[:-1]) | by_data("ppo", [UF])
    assert set(in_table(runs, "Table 2", "ppo")) == online
    models = by_data("reward_model", [UF, MIX]) | by_data("reward_model_70b", [UF, MIX])
    assert set(in_table(runs, "Table 3", "reward_model")) == models
    for kind in ("rewardbench", "best_of_n"):
        judged = set(in_table(runs, "Table 3", kind))
        assert judged == {f"{model}/{kind}" for model in models}
    base = by_data("ppo", [UF, MIX]) | by_data("ppo_70b_rm", [UF, MIX])
    assert set(in_table(runs, "Table 3", "ppo")) == base
    assert on_prompts("gsm8k") | on_prompts("maths") | base == set(
        in_table(runs, "Figure 3")
    )
    assert set(in_table(runs, "Table 4")) == base | on_prompts("mixed")
    steps = "dpo", "ppo", "ppo_70b_rm", "ppo_70b_rm_mixed"
    assert in_table(runs, "Table 5") == [f"{step}/data={UF}" for step in steps]
    parts = [name for name in paper.PAIRS if name.startswith("ultrafeedback_")]
    parts = set(parts) - {UF, "ultrafeedback_overall"}
    assert len(parts) == 9
    assert set(in_table(runs, "Table 7")) == by_data("dpo", parts)


def on_prompts(name):
    sizes = f"ppo_{name}", f"ppo_70b_rm_{name}"
    return by_data(sizes[0], [UF, MIX]) | by_data(sizes[1], [UF, MIX])


def test_every_sweep_of_the_file_belongs_to_a_table():
    used = {name for table in paper.TABLES for name in table.sweeps}
    assert used == set(sweep.names(paper.CONFIG))


def test_no_run_is_made_twice(configs):
    """Nor does one that tables share, or a sweep passes through, get another folder."""
    texts = Counter(c.to_json_best_effort(sort_keys=True) for c in configs.values())
    assert max(texts.values()) == 1


# What they are


def test_hyper_parameters_are_the_published_ones(configs):
    change = {
        "beta": "objective.beta",
        "kl_coef": "objective.kl_coef",
        "batch": "batch",
        "minibatches": "objective.minibatches",
    }
    for name, config in configs.items():
        preset, point = name.split("/")
        if preset == "dpo":
            wanted = dict(published.DPO)
        elif preset.startswith("reward_model"):
            wanted = dict(published.REWARD)
        else:
            judge = {"objective.kl_coef": 0.0325} if "70b_rm" in preset else {}
            wanted = published.PPO | judge
        if preset.endswith("3_epochs"):  # the warmup is that of one
            wanted |= {"epochs": 3, "optimizer.warmup": pytest.approx(0.1 / 3)}
        for key, value in (pair.split("=") for pair in point.split(",")):
            if key in change:
                wanted[change[key]] = float(value)
        found = {key: published.effective(config, key) for key in wanted}
        assert found == wanted, name


def test_data_and_models_are_read_from_under_the_root(configs):
    for name, config in configs.items():
        preset, _, point = name.partition("/")
        size = "70b" if preset == "reward_model_70b" else "13b"
        assert config.init == f"{ROOT}/models/tulu-2-{size}"
        assert config.reference.path == ""  # where the policy starts
        assert config.eval.mixture.main.path in (None, "")
        path = config.data.mixture.main.path
        split = config.paper.data
        assert point.startswith(f"data={split}") or split == UF
        online = preset.startswith("ppo")
        folder = "tulu-2.5-preference-data"
        if online and preset != "ppo_same_prompts":
            folder = "tulu-2.5-prompts"
            ends = {"gsm8k": "gsm8k_prompts", "maths": "math_prompts_20k"}
            ends |= {"mixed": "ultrafeedback_code_math_prompts"}
            split = ends.get(preset.rpartition("_")[2], "ultrafeedback_prompts")
        assert path == f"{ROOT}/data/{folder}/data/{split}-*"
        format = config.data.mixture.main.format
        assert format == ("prompts" if online else "preferences")
        assert formats.get(format)


def test_prompts_of_pairs_are_what_was_asked():
    """As ppo_same_prompts reads the file that the reward model was trained on."""
    ask = {"role": "user", "content": "2 + 2?"}
    answers = [[ask, {"role": "assistant", "content": text}] for text in "45"]
    row = dict(chosen=answers[0], rejected=answers[1], source="a")
    assert formats.get("prompts")(row)["prompt"] == [ask]


def test_ppo_has_the_reward_model_of_its_row_and_the_value_model_starts_from_it(
    configs,
):
    for name, config in configs.items():
        preset = name.partition("/")[0]
        if preset.startswith("ppo"):
            kind = "reward_model_70b" if "70b_rm" in preset else "reward_model"
            model = f"{WORK}/{kind}/data={config.paper.data}"
            assert config.reward.terms.model.model == config.value.path == model
            assert os.path.relpath(model, WORK) in configs


def test_fine_tuning_is_that_of_tulu_2():
    config = paper._config(["--config", f"{paper.CONFIG}:sft"])
    assert (config.epochs, config.batch, config.data.length) == (2, 128, 8192)
    assert config.init == "study/models/Llama-2-13b-hf"
    assert "tulu-v2-sft-mixture" in config.data.mixture.main.path


def test_a_wrong_preset_is_told_which_there_are():
    with pytest.raises(UserError, match="no preset 'ppo_70b'; there are.*ppo_70b_rm"):
        sweep.plan(f"{paper.CONFIG}:ppo_70b", "table3", WORK)


# How large


def test_data_has_the_sizes_of_the_study():
    assert sum(paper.PAIRS.values()) == 2_122_287 and len(paper.PAIRS) == 28
    found = {name: paper.PAIRS[name] for name in TABLE_1}
    # The released split has fewer than the table says.
    assert found == TABLE_1 | {"ultrafeedback_overall": 58_933}
    sizes = [paper.PAIRS[name] for name in TABLE_2]
    assert sizes == [60_908, 20_465, 60_908, 60_908, 60_908]
    assert sum(paper.PAIRS[name] for name in TABLE_6) == paper.PAIRS[MIX] == 259_851
    assert 259_851 == 9_270 + 6_949 + 4 * 60_908
    prompts = paper.PROMPTS.values()
    assert [f"{rows / 1000:.3g}" for rows in prompts] == ["60.9", "7.47", "20", "101"]


def test_runs_have_the_sizes_of_the_study(runs):
    """Its own loader leaves out the rest of an epoch, ours makes an update of it."""
    for run in runs:
        if run.kind in paper.TRAINED:
            exact = run.rows * run.epochs / run.per_update
            assert exact <= run.updates < exact + 8, run.name
    of = {run.name: run for run in runs}
    run = of[f"dpo/data={UF}"]
    assert (run.rows, run.epochs, run.per_update) == (60_908, 3, 32)
    assert run.updates == 3 * ceil(60_908 / 32) == 5_712
    run = of[f"reward_model/data={UF}"]
    assert (run.rows, run.epochs, run.per_update) == (60_908, 1, 512)
    assert run.updates == 119 == round(1_903 / 16)  # streaming_params_1903
    for name in (
        f"ppo/data={UF}",
        f"ppo_mixed/data={UF}",
        "ppo/batch=512,minibatches=8",
    ):
        run = of[name]
        assert (run.rows, run.epochs, run.per_update) == (60_908, 1, 64)
        assert run.updates == 952
    assert of["ppo_same_prompts/data=chatbot_arena_2023"].rows == 20_465
    assert of[f"ppo_gsm8k/data={UF}"].updates == ceil(7_473 / 64)
    assert of[f"ppo_70b_rm_3_epochs/data={UF}"].updates == ceil(3 * 60_908 / 64)


def test_what_is_trained_is_the_policy_and_the_value_model(runs):
    of = {run.name: run.trained for run in runs}
    policy, model = of[f"dpo/data={UF}"], of[f"reward_model/data={UF}"]
    large = of[f"reward_model_70b/data={UF}"]
    assert policy == 13_015_864_320  # of Llama 2 13B
    assert policy - model == (32_000 - 1) * 5120  # a score in place of the vocabulary
    assert large == 68_976_648_192 - (32_000 - 1) * 8192
    assert of[f"ppo/data={UF}"] == policy + model
    assert of[f"ppo_70b_rm/data={UF}"] == policy + large


@pytest.mark.parametrize("rows, epochs", [(23, 1), (23, 3), (24, 2), (3, 2)])
def test_updates_are_those_that_the_data_makes(rows, epochs, configs, tmp_path):
    path = toy.write(tmp_path / "a.jsonl", toy.texts(rows))
    pairs, prompts = (
        configs[f"{kind}/data={UF}"].copy_and_resolve_references()
        for kind in ("dpo", "ppo")
    )
    pairs.epochs = prompts.epochs = epochs
    pairs.data.items_per_update = prompts.batch = 4
    grouped = toy.make(path, items_per_update=4, batch_rows=8, items_per_row=32)
    assert paper.updates(pairs, rows) == grouped.batches(epochs)
    single = toy.make(path, items_per_row=1, batch_rows=4)
    assert paper.updates(prompts, rows) == single.batches(epochs)
    prompts.objective.minibatches = 2
    assert paper.updates(prompts, rows) == 2 * single.batches(epochs)


# What is printed


def test_all_commands_are_printed_once_and_after_what_they_use(runs):
    lines = paper.show(runs).splitlines()
    printed = [line for line in lines if line and not line.startswith("#")]
    assert printed == [run.line for run in runs]
    assert len(set(printed)) == len(printed)
    made = {f"{ROOT}/models/tulu-2-13b", f"{ROOT}/models/tulu-2-70b"}
    for run in runs:
        assert made.issuperset(run.uses), run.name
        made.add(run.name)
    folders = set()
    for words in map(shlex.split, printed):
        if "--workdir" in words:
            folders.add(words[words.index("--workdir") + 1])
        else:
            assert words[words.index("--model") + 1] in folders
    assert len(folders) == sum(run.kind in paper.TRAINED for run in runs)


def test_sizes_stand_before_a_command_and_tables_say_where_else_it_is(runs):
    text = paper.show(runs)
    size = "60,908 pairs, 3 epochs, 32 to an update: 5,712 updates"
    assert f"\n# dpo/data={UF}: {size} of up to 65,536 tokens, 13.0B" in text
    table = text.partition("# Table 5")[2].partition("\n\n")[0]
    wanted = ["see Table 1", "see Table 2", "see Table 3", "see Table 4"]
    assert re.findall("see .*", table) == wanted
    totals = text.rpartition("\n\n")[2]
    count = Counter(run.kind for run in runs)
    assert f"Together: {len(runs)} commands" in totals
    for kind in (*paper.TRAINED, *paper.JUDGED):
        assert f"# {kind}: {count[kind]} " in totals


def test_evaluations_are_asked_for_as_their_script_wants(runs):
    from scripts import eval_reward_model

    for run in runs:
        if run.kind in paper.JUDGED:
            args = eval_reward_model.arguments().parse_args(shlex.split(run.line)[2:])
            [model] = args.model
            assert (model, args.kind) == (f"{WORK}/{run.uses[0]}", run.kind)
            assert all(path.startswith(f"{ROOT}/data/") for path in args.data)
            assert bool(args.prior) == (run.kind == "rewardbench")


def test_what_is_finished_becomes_a_comment(tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "TABLES", paper.TABLES[2:3])  # planned twice
    before, name = paper.runs(ROOT, str(tmp_path)), f"reward_model/data={UF}"
    model = tmp_path / name
    model.mkdir(parents=True)
    [line] = [run.line for run in before if run.name == name]
    config = paper._config(shlex.split(line))
    (model / "run.json").write_text(config.to_json_best_effort())
    (model / "done.json").write_text(json.dumps({"steps": 119}))
    (model / "eval_best_of_n.json").write_text("{}")
    changed = [
        (old.name, new.line == f"# finished: {old.line}")
        for old, new in zip(before, paper.runs(ROOT, str(tmp_path)), strict=True)
        if old != new
    ]
    assert changed == [(name, True), (f"{name}/best_of_n", True)]
