"""Expert iteration: fine-tuning on the best of several sampled answers.

    python -m easylm.train --config configs/best_of.py --workdir runs/best_of \
        --config.init=/models/tulu-2-13b \
        --config.reward.terms.model.model=/models/rm-13b \
        --config.data.mixture.main.path='/data/ultrafeedback_prompts.jsonl'

The best of 16 answers to each of 64 prompts, one update of these 64. Prompts, lengths,
temperature and the -10 for an answer without an end are those of the study's 13B PPO
(arXiv 2406.09279), 16 is the N of its best-of-N; the study fine-tuned nobody in this
way, so lr 2e-6, a tenth of its SFT, is our choice. objective.kl_coef holds the policy
near the reference, as in SuperHF (arXiv 2310.16763).

`:rft` is against verifiers: all answers that are right, of 16 to each problem, are
learned, in the spirit of RFT (arXiv 2308.01825) and ReST (arXiv 2308.08998), which draw
more answers at once and start from the base model again.

On a laptop: configs/study/world.py:best_of.
"""

from ml_collections.config_dict import placeholder

from configs import common


def get_config(arg: str = ""):
    return common.preset(arg, **{"default": study, "13b": study}, rft=rft)


def study():
    c = common.base()
    c.objective.name = "best_of"
    common.options(
        c.objective,
        **dict.fromkeys(("keep", "epochs", "minibatches"), int),
        **dict.fromkeys(("threshold", "kl_coef"), float),
        kl=str,
        shuffle=bool,
    )
    common.online(c, prompt_length=1024, max_new_tokens=1024)
    c.rollout.group = 16
    c.rollout.temperature = 0.7
    c.objective.temperature = c.rollout.get_oneway_ref("temperature")
    c.reward.terms.model = common.term(model=placeholder(str))
    c.reward.no_stop = -10.0
    c.batch = 64
    c.optimizer.lr = 2e-6
    c.optimizer.schedule = "constant"
    c.checkpoint.every = 100
    return c


def rft():
    """Right answers are rewarded with 1, the others with 0."""
    c = study()
    c.data.mixture.main.format = "rlvr"
    del c.reward.terms.model
    c.reward.terms.verifier = common.term(verifier="data")
    c.reward.no_stop = 0.0
    c.objective.keep = 16
    c.objective.threshold = 0.5
    return c


def sweep_group(add):
    """The best of how many."""
    for group in (2, 4, 8, 16):
        add({"rollout.group": group})


def sweep_kl(add):
    """How far the policy may go from the reference."""
    for coef in (0.0, 0.1, 0.35):
        for seed in (0, 1, 2):
            add({"objective.kl_coef": coef, "seed": seed})
