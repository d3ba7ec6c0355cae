"""GRPO and its relatives: several answers to each prompt judge one another.

    python -m easylm.train --config configs/grpo.py --workdir runs/grpo \
        --config.init=/models/tulu-3-8b-dpo \
        --config.data.mixture.main.path='/data/rlvr_gsm_math_if.jsonl'

An iteration answers `batch` prompts, rollout.group times each, and makes
objective.minibatches updates of the answers. There is no value model. Rewards are of
verifiers, by default those that the rows name (docs/online_rl.md has the list).

Recipes. The default is Tulu 3.1 8B, as released (16 answers to each of 48 prompts):

    olmo2_32b       that of Tulu 3.1        olmo2_1b    its first stage of two; the
    if_rlvr         arXiv 2507.02833                    second has data of MATH only
    spurious        arXiv 2506.10947, random rewards; sweep_rewards has the others

Methods, with what their papers say, and the default's values where they say nothing:

    deepseekmath    GRPO as it was first (arXiv 2402.03300): a mean over answers
    dr_grpo         no deviation, no division by the length (arXiv 2503.20783)
    dapo            higher upper clip, prompts until enough groups have a difference, a
                    price for length (arXiv 2503.14476)
    gspo            the ratio of an answer (arXiv 2507.18071)
    cispo           weights clipped, not updates (arXiv 2506.13585)
    bnpo            the default: a mean over tokens, of the whole update (TRL's bnpo
                    takes that of a microbatch, so results depend on memory)
    rloo            against the mean of the others (arXiv 2402.14740)
    reinforce       one answer to each prompt, against the mean of the batch
    reinforce_pp    the same, whitened, KL token by token (arXiv 2501.03262)
    reinforce_pp_baseline   its variant with groups

On a laptop: configs/study/world.py:grpo.
"""

from configs import common


def get_config(arg: str = ""):
    recipes = (tulu31, olmo2_1b, if_rlvr, spurious)
    methods = (deepseekmath, dr_grpo, dapo, gspo, cispo, rloo)
    methods += (reinforce, reinforce_pp, reinforce_pp_baseline)
    return common.preset(
        arg,
        default=tulu31,
        olmo2_32b=tulu31,
        bnpo=tulu31,
        **{preset.__name__: preset for preset in (*recipes, *methods)},
    )


def grpo(prompt_length: int, max_new_tokens: int):
    """What all have: groups, verifiers, and no KL."""
    c = common.base()
    common.policy_gradient(c, "group_norm")
    common.online(c, prompt_length=prompt_length, max_new_tokens=max_new_tokens)
    c.data.mixture.main.format = c.eval.mixture.main.format = "rlvr"
    c.reward.terms.verifier = common.term(verifier="data")
    c.rollout.group = 16
    c.objective.whitening = "none"
    penalty(c, "k3", "loss", 0.0)
    c.optimizer.schedule = "constant"
    c.optimizer.warmup = 0.0
    c.checkpoint.every = 100
    return c


def penalty(c, kl: str, where: str, coef: float) -> None:
    c.objective.kl, c.objective.kl_in, c.objective.kl_coef = kl, where, coef


def tulu31():
    c = grpo(prompt_length=2048, max_new_tokens=2048)
    c.batch = 48
    c.reward.terms.verifier.weight = 10.0
    c.reward.no_stop = 0.0
    c.objective.minibatches = 2
    c.objective.ddof, c.objective.eps = 1, 1e-8
    penalty(c, "k3", "loss", 0.01)
    c.optimizer.lr = 5e-7
    c.optimizer.b2 = 0.999
    return c


def sums(c) -> None:
    """Over the tokens of an answer, not divided by their number."""
    c.objective.reduce = "constant"
    c.objective.limit = c.rollout.get_oneway_ref("max_new_tokens")


def olmo2_1b():
    """2 million answers, one update of 768 at a time."""
    c = tulu31()
    c.objective.minibatches = 1
    c.objective.ddof = 0
    c.steps = 2_000_000 // (48 * 16)
    return c


def if_rlvr():
    """2 million answers to allenai/IF_multi_constraints_upto5, from Tulu 3 8B DPO."""
    c = tulu31()
    c.objective.ddof = 0
    c.steps = 2_000_000 // (48 * 16)
    return c


def spurious():
    """Qwen2.5-Math-7B on DeepScaleR, with a coin for a reward."""
    c = grpo(prompt_length=1024, max_new_tokens=3072)
    c.template = "jinja"  # the one that came with the checkpoint
    c.data.mixture.main.format = c.eval.mixture.main.format = "spurious"
    c.reward.terms.verifier = common.term(verifier="random")  # p = 0.5
    c.batch = 64
    c.objective.minibatches = 8
    c.objective.ddof, c.objective.eps = 1, 1e-9
    c.optimizer.lr = 5e-7
    return c


def deepseekmath():
    """64 answers to each of 16 prompts, one update."""
    c = grpo(prompt_length=1024, max_new_tokens=1024)
    c.rollout.group = 64
    c.batch = 16
    c.objective.reduce = "answer"
    penalty(c, "k3", "loss", 0.04)
    c.optimizer.lr = 1e-6
    return c


def dr_grpo():
    """8 answers to each of 128 prompts, 8 updates."""
    c = grpo(prompt_length=1024, max_new_tokens=3000)
    c.rollout.group = 8
    c.batch = 128
    c.objective.advantage = "group_mean"
    sums(c)
    c.objective.minibatches = 8
    c.optimizer.lr = 1e-6
    return c


def dapo():
    """Right is 1, wrong -1, and the last 4,096 tokens cost up to 1."""
    c = grpo(prompt_length=2048, max_new_tokens=20480)
    c.reward.gain, c.reward.bias = 2.0, -1.0
    c.reward.overlong_buffer = 4096
    c.batch = 512
    c.rollout.rounds = 3  # 1,536 prompts, at most, for 512 that are of use
    c.objective.minibatches = 16
    c.objective.high = 0.28
    c.optimizer.lr = 1e-6
    c.optimizer.warmup = 20 * 16  # updates of 20 iterations
    c.optimizer.b2 = 0.999
    c.optimizer.decay = 0.1
    return c


def gspo():
    c = tulu31()
    c.objective.level = c.objective.reduce = "answer"
    c.objective.low, c.objective.high = 3e-4, 4e-4
    c.objective.minibatches = 4
    c.objective.kl_coef = 0.0
    return c


def cispo():
    c = tulu31()
    c.objective.loss = "cispo"
    c.rollout.rounds = 3
    c.objective.minibatches = 16
    c.objective.kl_coef = 0.0
    c.optimizer.b2 = 0.95
    c.optimizer.eps = 1e-15
    return c


def ungrouped(advantage: str):
    """One update of all answers; KL is part of the reward; no deviation of a group."""
    c = tulu31()
    c.objective.ddof = c.objective.eps = None
    c.objective.advantage = advantage
    c.objective.minibatches = 1
    penalty(c, "k1", "reward", 0.01)
    return c


def rloo():
    """4 answers to a prompt; the answer is the action, so its tokens are summed."""
    c = ungrouped("leave_one_out")
    c.rollout.group = 4
    c.batch = 192
    c.objective.loss = "reinforce"
    sums(c)
    return c


def reinforce():
    c = rloo()
    c.objective.advantage = "batch_mean"
    c.rollout.group = 1
    c.batch = 768
    return c


def reinforce_pp():
    c = ungrouped("discounted_returns")
    c.objective.whitening = "batch"
    c.objective.minibatches = 2
    c.rollout.group = 1
    c.batch = 768
    return c


def reinforce_pp_baseline():
    c = ungrouped("group_mean")
    c.objective.whitening = "batch"
    c.objective.minibatches = 2
    penalty(c, "k2", "loss", 0.01)
    return c


def sweep_kl(add):
    """How far the policy may go from the reference."""
    for coef in (0.0, 0.001, 0.01, 0.04):
        for seed in (0, 1, 2):
            add({"objective.kl_coef": coef, "seed": seed})


def sweep_rewards(add):
    """For :spurious: the truth, and rewards that know little or nothing of it.

    Wrong and majority labels are other data: rewards/spurious.py.
    """
    for verifier in ("math", "boxed_format", "mentions_python", "random"):
        add({"reward.terms.verifier.verifier": verifier})
