"""Online DPO: preference learning on pairs of the policy's own answers.

    python -m easylm.train --config configs/online_dpo.py --workdir runs/online_dpo \
        --config.init=/models/tulu-2-13b \
        --config.reward.terms.model.model=/models/rm-13b \
        --config.data.mixture.main.path='/data/ultrafeedback_prompts.jsonl'

Two answers to each of 64 prompts, one update of the 64 pairs. beta 0.1 and lr 5e-7 are
the defaults of the study's code for online DPO (arXiv 2406.09279 reports none) and of
TRL's; the lengths, temperature 0.7 and the -10 for an answer without an end are those
of its 13B PPO. That code goes through the pairs four times: objective.epochs=4.

Losses: config.objective.loss names a function of easylm/losses/preference.py ("ipo" is
online IPO), or p3o or p3o_separate of losses/policy_gradient.py: `:p3o`, which has
a kl_coef instead of a beta. With rollout.group=8, say, the best answer of each group is
paired with the worst. Two prompts and answers must fit into data.length.

On a laptop: configs/study/world.py:online_dpo.
"""

from ml_collections.config_dict import placeholder

from configs import common


def get_config(arg: str = ""):
    return common.preset(arg, **{"default": study, "13b": study}, p3o=p3o)


def study():
    c = common.base()
    c.objective.name = "online_preference"
    c.objective.loss = "dpo"
    numbers = ("beta", "label_smoothing", "margin", "weight", "alpha", "preference")
    numbers += ("baseline", "chosen_weight", "rejected_weight", "nll_weight")
    numbers += ("optimism", "tail_weight", "beta_gain", "beta_target", "sync_share")
    numbers += ("kl_coef", "clip", "cap")  # the last two of p3o
    common.options(
        c.objective,
        **dict.fromkeys(numbers, float),
        **dict.fromkeys(("epochs", "minibatches", "sync_every"), int),
        **dict.fromkeys(("shuffle", "weigh_by_policy"), bool),
        **dict.fromkeys(("pairs", "divergence"), str),
    )
    common.online(c, prompt_length=1024, max_new_tokens=1024)
    c.data.length = 2 * (1024 + 1024)
    c.rollout.group = 2
    c.rollout.temperature = 0.7
    c.objective.temperature = c.rollout.get_oneway_ref("temperature")
    c.reward.terms.model = common.term(model=placeholder(str))
    c.reward.no_stop = -10.0
    c.batch = 64
    c.optimizer.lr = 5e-7
    c.optimizer.schedule = "constant"
    c.optimizer.warmup = 0.1
    c.checkpoint.every = 100
    return c


def p3o():
    """A policy gradient of pairs (arXiv 2310.00212), with the KL and lr of our PPO."""
    c = study()
    c.objective.loss = "p3o"
    c.objective.kl_coef = 0.05
    c.optimizer.lr = 1e-6
    return c


def sweep_beta(add):
    """How far the policy may go from the reference."""
    for beta in (0.3, 0.1, 0.03):
        for seed in (0, 1, 2):
            add({"objective.beta": beta, "seed": seed})


def sweep_loss(add):
    """Losses at their defaults."""
    for loss in ("dpo", "dpo_norm", "ipo", "hinge", "kto", "simpo"):
        add({"objective.loss": loss})


def sweep_group(add):
    """Best against worst of more and more answers, to as many prompts."""
    for group in (2, 4, 8):
        add({"rollout.group": group})
