"""The runs of the study, "Unpacking DPO and PPO" (arXiv 2406.09279), at its own scale.

    python scripts/sweep.py --config configs/study/paper.py:dpo --sweep table1 \
        --workdir ROOT/runs/dpo --config.paper.root=ROOT

A sweep has the points of a table or figure, a preset says what is made of each: `:dpo`,
`:reward_model`, `:reward_model_70b`, PPO against these as `:ppo` and `:ppo_70b_rm`, the
same on other prompts than those of UltraFeedback as `:ppo_gsm8k`, `:ppo_maths`,
`:ppo_mixed`, `:ppo_70b_rm_gsm8k` and so on, and `:ppo_same_prompts` on those that its
reward model has seen. easylm/study/paper.py knows which presets a table has, and prints
all of it in order: python scripts/study.py --scale paper --dry-run. Policies start from
Tulu 2 13B, reward models of 70B from Tulu 2 70B; `:sft` is how the former was made.

Under paper.root everything lies as `hf download --local-dir` leaves it:

    ROOT/models/tulu-2-13b, tulu-2-70b                allenai/tulu-2-13b, tulu-2-70b
    ROOT/data/tulu-2.5-preference-data/data/SPLIT-*   allenai/tulu-2.5-preference-data
    ROOT/data/tulu-2.5-prompts/data/SPLIT-*           allenai/tulu-2.5-prompts
    ROOT/data/reward-bench/data/filtered-*            allenai/reward-bench
    ROOT/data/pref-test-sets/data/*                   allenai/pref-test-sets
    ROOT/data/best-of-16/*     rows of prompt, 16 candidates from Tulu 2 13B, gold

A run is in RUNS/PRESET/POINT, where RUNS is paper.runs, or ROOT/runs. PPO looks there
for the reward model that was trained on paper.data: RUNS/reward_model/data=SPLIT. A run
has the same name in all tables that share it, so that it is made only once.

Devices are not part of the study's recipe: give config.mesh, config.microbatches, and
for pairs config.batch, as flags. 32 pairs of StackExchange do not always fit into the 8
rows of dpo; such a run says at its start how many it needs.

What the sources at hand do not say: the other values of the sweeps over KL and prompt
batch (those here lie around the known 0.05 and 0.0325, and 64 and 512), which 60K of
the 101K remixed prompts Table 4 is about (here a random choice) and whether Table 5 is
about the same, which of the reward models Table 4 compares (here all four), the prompts
of best-of-16, and the recipe of the Llama 3 rows of Table 5, which are left out.
"""

from functools import partial

from ml_collections import ConfigDict

from configs import common, ppo, preference, reward_model, sft
from easylm.study.paper import ROWS

ULTRAFEEDBACK = "ultrafeedback_mean_aspects"
MIX = "preference_big_mixture"
WEB = "shp_2", "stack_exchange_paired"
HUMAN = (
    *("prm800k_pairs_phase2", "chatbot_arena_2023", "chatbot_arena_2024"),
    *("alpaca_farm_human_pref", "hh_rlhf", "helpsteer"),
)
SYNTHETIC = (
    *("alpaca_farm_gpt4_pref", "capybara", "orca_dpo_pairs", "nectar"),
    *("ultrafeedback_overall", ULTRAFEEDBACK),
)
# Downsampled to as many pairs as UltraFeedback has, but for the smaller Arena.
EQUAL = "stack_exchange_60k", "chatbot_arena_2023", "hh_rlhf_60k", "nectar_60k"
GENERATORS = "lower_10k", "middle_10k", "top_10k"
ORIGINS = "evol_instruct", "false_qa", "flan_v2", "sharegpt", "truthful_qa", "ultrachat"
# What the names of presets end with.
PROMPTS = {
    "": "ultrafeedback_prompts",
    "_gsm8k": "gsm8k_prompts",
    "_maths": "math_prompts_20k",
    "_mixed": "ultrafeedback_code_math_prompts",
}
KL = 0.1, 0.05, 0.0325, 0.025, 0.0125
BATCHES = 64, 128, 256, 512


def get_config(arg: str = ""):
    against = {"ppo": against_13b, "ppo_70b_rm": against_70b}
    return common.preset(
        arg,
        default=direct,
        sft=tulu2,
        dpo=direct,
        reward_model=partial(reward, "tulu-2-13b"),
        reward_model_70b=partial(reward, "tulu-2-70b"),
        ppo_same_prompts=same_prompts,
        ppo_70b_rm_3_epochs=three_epochs,
        **{
            f"{name}{ending}": partial(make, prompts)
            for name, make in against.items()
            for ending, prompts in PROMPTS.items()
        },
    )


def tulu2():
    """The model that all others start from, and what it learned from."""
    c = sft.study()
    root = place(c, "Llama-2-13b-hf")
    del c.paper.data
    c.data.mixture.main.path = root + "/data/tulu-v2-sft-mixture/data/train-*"
    return c


def direct():
    return on_pairs(preference.study(), "tulu-2-13b")


def reward(model: str):
    return on_pairs(reward_model.study(), model)


def against_13b(prompts: str):
    return on_prompts(ppo.study(), prompts, "reward_model")


def against_70b(prompts: str):
    return on_prompts(ppo.study_70b_rm(), prompts, "reward_model_70b")


def three_epochs():
    """With the warmup of one epoch, and two checkpoints of each that are kept."""
    c = against_70b(PROMPTS[""])
    c.epochs = 3
    c.optimizer.warmup /= 3
    c.checkpoint.keep_every = 500
    return c


def same_prompts():
    """Those of the reward model's pairs, as the cards of Table 2's models say."""
    c = against_13b(PROMPTS[""])
    c.data.mixture.main.path = pairs(c)
    return c


def on_pairs(c, model: str):
    place(c, model)
    c.data.mixture.main.path = pairs(c)
    return c


def on_prompts(c, prompts: str, judge: str):
    """paper.data are the pairs that the reward model was trained on."""
    root = place(c, "tulu-2-13b")
    runs, data = c.paper.get_oneway_ref("runs"), c.paper.get_oneway_ref("data")
    c.reward.terms.model.model = runs + f"/{judge}/data=" + data
    c.data.mixture.main.path = root + f"/data/tulu-2.5-prompts/data/{prompts}-*"
    if prompts == PROMPTS["_mixed"]:  # as many as the others have
        c.data.mixture.main.subset = ROWS[PROMPTS[""]]
    return c


def pairs(c):
    root, data = c.paper.get_oneway_ref("root"), c.paper.get_oneway_ref("data")
    return root + "/data/tulu-2.5-preference-data/data/" + data + "-*"


def place(c, model: str):
    """Where things are; -> the root, for paths that follow it."""
    c.paper = ConfigDict({"root": "study"})
    root = c.paper.get_oneway_ref("root")
    c.paper.runs = root + "/runs"
    c.paper.data = ULTRAFEEDBACK
    c.init = root + f"/models/{model}"
    return root


def sweep_table1(add):
    """dpo: 14 data sets of preferences."""
    for data in (*WEB, *HUMAN, *SYNTHETIC):
        add({"paper.data": data})


def sweep_table2(add):
    """dpo, reward_model: five data sets, of one size but for the Arena's."""
    for data in (*EQUAL, ULTRAFEEDBACK):
        add({"paper.data": data})


def sweep_table2_ppo(add):
    """ppo_same_prompts: those of table2 but UltraFeedback, which is ppo of table5."""
    for data in EQUAL:
        add({"paper.data": data})


def sweep_table3(add):
    """reward_model, ppo, and with 70B: reward models trained on one data set or four.

    PPO on other prompts makes Figure 3 and Table 4 of it.
    """
    for data in (ULTRAFEEDBACK, MIX):
        add({"paper.data": data})


def sweep_figure3(add):
    """Those of table3 with ppo, ppo_gsm8k, ppo_maths: prompts like those of a test."""
    sweep_table3(add)


def sweep_table4(add):
    """Those of table3 with ppo, ppo_mixed: 60K prompts with maths and code, or not."""
    sweep_table3(add)


def sweep_table5(add):
    """dpo, ppo, ppo_70b_rm, ppo_70b_rm_mixed: the recipe, step by step."""
    add({"paper.data": ULTRAFEEDBACK})


def sweep_table7(add):
    """dpo: parts of UltraFeedback by the strength of generators, and by origin."""
    for part in (*GENERATORS, *ORIGINS):
        add({"paper.data": f"ultrafeedback_{part}"})


def sweep_beta(add):
    """dpo: the other beta that is said to have been used; 0.1 is in table1."""
    add({"objective.beta": 0.01})


def sweep_kl(add):
    """ppo: the coefficient of the KL penalty; 0.05 is in table5."""
    _others(add, KL, "objective.kl_coef", ppo.study().objective.kl_coef)


def sweep_kl_70b_rm(add):
    """ppo_70b_rm: the same against 70B, which bears less; 0.0325 is in table3."""
    _others(add, KL, "objective.kl_coef", ppo.study_70b_rm().objective.kl_coef)


def sweep_prompt_batch(add):
    """ppo, Table 11: updates of 64 answers, and more and more between two samplings.

    64 at a time are in table5. Its rows with several answers to a prompt, and with
    larger updates, are not known.
    """
    update = ppo.study().batch
    for batch in BATCHES:
        if batch != update:
            add({"batch": batch, "objective.minibatches": batch // update})


def sweep_epochs(add):
    """ppo_70b_rm_3_epochs: the curve over three epochs."""
    sweep_table5(add)


def _others(add, values, key, known):
    for value in values:
        if value != known:
            add({key: value})
