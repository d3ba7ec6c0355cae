"""PPO against a reward model.

    python -m easylm.train --config configs/ppo.py --workdir runs/ppo \
        --config.init=/models/tulu-2-13b \
        --config.reward.terms.model.model=/models/rm-13b \
        --config.data.mixture.main.path='/data/ultrafeedback_prompts.jsonl'

The values are those of the 13B runs of the study (arXiv 2406.09279), with the algorithm
as it is meant: old log-probabilities are those of the policy that sampled, so that the
clip binds. `:as_published` is what the code of the study did instead, with the larger
batches of its released command; docs/online_rl.md says where they differ. `:70b_rm` has
the KL coefficient for a 70B reward model, `:70b` is the 70B policy, `:tulu3` PPO of
Tulu 3 (arXiv 2411.15124) against a reward model, `:tulu3_rlvr` against verifiers, and
`:tulu3_rlvr_70b` the same for 70B.

The value model starts from the reward model, score head included: value.path. An
iteration answers `batch` prompts, and makes objective.epochs x objective.minibatches
updates of them.

On a laptop: configs/study/world.py:ppo.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import common


def get_config(arg: str = ""):
    return common.preset(
        arg,
        **{"default": study, "13b": study, "70b_rm": study_70b_rm, "70b": study_70b},
        as_published=as_published,
        tulu3=tulu3,
        tulu3_rlvr=tulu3_rlvr,
        tulu3_rlvr_70b=tulu3_rlvr_70b,
    )


def study():
    c = common.base()
    common.policy_gradient(c, "gae")
    common.online(c, prompt_length=1024, max_new_tokens=1024)
    c.rollout.temperature = 0.7
    c.objective.temperature = c.rollout.get_oneway_ref("temperature")
    c.objective.kl_coef = 0.05
    c.reward.terms.model = common.term(model=placeholder(str))
    c.reward.no_stop = -10.0
    value(c)
    c.batch = 64
    c.optimizer.lr = 1e-6
    c.optimizer.schedule = "constant"
    c.optimizer.warmup = 0.1
    c.checkpoint.every = 100
    return c


def value(c) -> None:
    """The value model starts where the reward model is, unless told otherwise."""
    c.value = ConfigDict({"path": ""})
    c.value.path = c.reward.terms.model.get_oneway_ref("model")
    c.value.optimizer = ConfigDict({"lr": placeholder(float)})  # else the policy's


def study_70b_rm():
    c = study()
    c.objective.kl_coef = 0.0325
    return c


def study_70b():
    c = study()
    c.batch = 32
    c.optimizer.warmup = 0.0125
    return c


def as_published():
    """The released command: 512 prompts, 8 updates of 64 answers, as coded."""
    c = study()
    c.objective.interleaved = True
    c.objective.shuffle = False
    c.objective.whiten_eps = 1e-6
    c.objective.minibatches = 8
    c.objective.temperature = 1.0  # though 0.7 samples
    c.rollout.top_k = 50
    c.data.prompt_bos = False
    c.batch = 512
    return c


def tulu3():
    """8B against a reward model, from its SFT model: 300,000 answers."""
    c = study()
    c.rollout.prompt_length = 2048
    c.data.length = 3072
    c.rollout.temperature = 1.0
    c.batch = 224
    c.steps = 300_000 // 224
    c.optimizer.lr = 3e-7
    c.optimizer.schedule = "linear"
    c.optimizer.warmup = 0.0
    c.optimizer.eps = 1e-5
    return c


def tulu3_rlvr():
    """8B against verifiers: 100,000 answers; value.path is a reward model."""
    c = tulu3()
    c.rollout.max_new_tokens = 2048
    c.data.length = 4096
    c.data.mixture.main.format = c.eval.mixture.main.format = "rlvr"
    c.value.path = placeholder(str)
    del c.reward.terms.model
    c.reward.terms.verifier = common.term(verifier="data", weight=10.0)
    c.objective.epochs = 4
    c.steps = 100_000 // 224
    return c


def tulu3_rlvr_70b():
    """400,000 answers; value.path is the reward model of 8B."""
    c = tulu3_rlvr()
    c.objective.kl_coef = 0.07
    c.batch = 640
    c.steps = 400_000 // 640
    c.optimizer.lr = 1e-7
    c.optimizer.warmup = 0.1
    return c


def sweep_kl(add):
    """How far the policy may go from the reference."""
    for coef in (0.2, 0.1, 0.05, 0.025, 0.0125):
        for seed in (0, 1, 2):
            add({"objective.kl_coef": coef, "seed": seed})
