"""Direct preference learning: DPO and its family, on pairs of answers.

    python -m easylm.train --config configs/preference.py --workdir runs/dpo \
        --config.init=/models/tulu-2-13b \
        --config.data.mixture.main.path='/data/ultrafeedback_mean_aspects.jsonl'

The values are those of the 13B runs of the study (arXiv 2406.09279): 3 epochs, 32 pairs
to an update, answers of up to 4,096 tokens, lr 5e-7, and dpo's default beta of 0.1.
`:7b` and `:70b` are the other sizes, `:tulu3_8b` and `:tulu3_70b` the recipe of Tulu 3
(arXiv 2411.15124).

An update holds data.items_per_update pairs, packed into `batch` rows; `batch` and
`microbatches` are a matter of memory and devices only. Losses: config.objective.loss
names a function of easylm/losses/preference.py, and its arguments are options beside
it: --config.objective.beta=0.01.

On a laptop: configs/study/world.py:dpo.
"""

from configs import common


def get_config(arg: str = ""):
    return common.preset(
        arg,
        **{"default": study, "13b": study, "7b": study_7b, "70b": study},
        tulu3_8b=tulu3_8b,
        tulu3_70b=tulu3_70b,
    )


def study():
    """The study's recipe; the same at 13B and 70B."""
    c = common.base()
    c.objective.name = "preference"
    c.objective.loss = "dpo"
    common.options(
        c.objective,
        **dict.fromkeys(("beta", "label_smoothing", "margin", "weight"), float),
        **dict.fromkeys(("temperature", "alpha", "preference", "baseline"), float),
        **dict.fromkeys(("chosen_weight", "rejected_weight", "nll_weight"), float),
        **dict.fromkeys(("optimism", "tail_weight", "sync_share"), float),
        **dict.fromkeys(("policy_temperature",), float),
        **dict.fromkeys(("beta_gain", "beta_target"), float),
        **dict.fromkeys(("token_weight", "degree_weight"), float),
        divergence=str,
        weigh_by_policy=bool,
        sync_every=int,
    )
    common.pairs(c, answer_length=4096, per_update=32, rows=8)
    c.epochs = 3
    c.optimizer.lr = 5e-7
    c.optimizer.warmup = 0.1
    return c


def study_7b():
    c = study()
    c.data.answer_length = 6144
    c.data.length = 2 * 6144
    return c


def tulu3_8b():
    """Length-normalised DPO."""
    c = study()
    c.objective.loss = "dpo_norm"
    common.pairs(c, answer_length=2048, per_update=128, rows=64)
    c.epochs = 1
    return c


def tulu3_70b():
    c = tulu3_8b()
    c.optimizer.lr = 2e-7
    return c


def sweep_beta(add):
    """How far the policy may go from the reference."""
    for beta in (0.5, 0.1, 0.03, 0.01):
        for seed in (0, 1, 2):
            add({"objective.beta": beta, "seed": seed})


def sweep_lr(add):
    for lr in (5e-6, 5e-7, 5e-8):
        add({"optimizer.lr": lr})


def sweep_loss(add):
    """Losses at their defaults."""
    for loss in ("dpo", "dpo_norm", "ipo", "hinge", "simpo", "orpo", "cpo", "kto"):
        add({"objective.loss": loss})
