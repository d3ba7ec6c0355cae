"""Reward models: a score for every answer, learnt from pairs.

    python -m easylm.train --config configs/reward_model.py --workdir runs/rm \
        --config.init=/models/tulu-2-13b \
        --config.data.mixture.main.path='/data/ultrafeedback_mean_aspects.jsonl'

The values are those of the study (arXiv 2406.09279), the same at 7B, 13B and 70B: one
epoch, 512 pairs to an update, answers of up to 4,096 tokens (pairs with a longer one
are dropped), lr 1e-5 falling to 1e-6. `:tulu3_8b` is the reward model of Tulu 3, from
which its PPO starts the value model (arXiv 2411.15124).

On a laptop: configs/study/world.py:judge.
"""

from configs import common


def get_config(arg: str = ""):
    return common.preset(
        arg,
        **{"default": study, "7b": study, "13b": study, "70b": study},
        tulu3_8b=tulu3_8b,
    )


def study():
    c = common.base()
    c.objective.name = "reward_model"
    c.objective.loss = "bradley_terry"
    numbers = ("margin", "label_smoothing", "centering", "sft_weight")
    common.options(c.objective, **dict.fromkeys(numbers, float))
    c.objective.weights = ()  # of the scores in the reward; (): their mean
    c.model.head = "score"
    c.model.score_std = 0.02
    common.pairs(c, answer_length=4096, per_update=512, rows=128)
    c.microbatches = 4
    c.data.too_long = "drop"
    c.epochs = 1
    c.optimizer.lr = 1e-5
    c.optimizer.end_ratio = 0.1
    c.optimizer.warmup = 0.03
    return c


def tulu3_8b():
    c = study()
    c.model.score_std = (4096 + 1) ** -0.5
    common.pairs(c, answer_length=2048, per_update=256, rows=128)
    c.data.too_long = "truncate"
    c.optimizer.lr = 3e-6
    c.optimizer.end_ratio = 0.0
    c.optimizer.warmup = 0.0
    return c


def sweep_lr(add):
    for lr in (3e-5, 1e-5, 3e-6):
        for seed in (0, 1, 2):
            add({"optimizer.lr": lr, "seed": seed})
