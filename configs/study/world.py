"""The study on the embedded world: a preset for each kind of stage.

    make study        # all of them in order, and a report
    python -m easylm.train --config configs/study/world.py:dpo \
        --config.world.data=crowd --workdir runs/mine      # one more, beside them

Stages find one another in world.root, by their names:

    pretrain-SIZE  sft-SIZE  judge-SIZE-DATA  dpo-DATA  ppo-JUDGE-PROMPTS  grpo
    data/DATA.jsonl              pairs of answers, of one kind of annotators
    data/prompts-PROMPTS.jsonl   what online RL answers

Everything is small enough for two CPU cores. The gold reward is measured, with weight
0, and never part of a reward.
"""

from functools import partial

from ml_collections import ConfigDict

from configs import best_of, common, grpo, online_dpo, ppo, preference, reward_model

SIZES = {  # width, layers, heads, MLP
    "small": (96, 2, 2, 256),
    "medium": (128, 4, 4, 352),
    "large": (192, 6, 6, 512),
}
POLICY = "sft-medium"


def get_config(arg: str = ""):
    stages = dict(sft=sft, judge=judge, dpo=dpo, ppo=with_values, grpo=with_groups)
    stages |= dict(online_dpo=with_pairs, best_of=with_the_best)
    sizes = {f"pretrain_{size}": partial(pretrain, size) for size in SIZES}
    return common.preset(arg, default=sft, **stages, **sizes)


def placed(c):
    """In the world: where other stages are, and what all stages have."""
    c.world = ConfigDict({"root": "runs/study"})
    c.model.dtype = "float32"
    c.model.remat = "none"
    c.model.unroll = 8
    c.mesh = "data"
    c.data.length = 128
    c.log.tensorboard = False
    c.checkpoint.keep = 1
    c.eval.every = c.checkpoint.every = 10_000  # at the end only
    return c.world.get_oneway_ref("root")


def pretrain(size: str):
    """A base model, from text, with a tokenizer of its own."""
    c = common.base()
    placed(c)
    c.tokenizer = "train"
    c.model.name = "llama:1m"
    c.model.vocab_size = 1536
    c.model.dim, c.model.layers, c.model.heads, c.model.mlp_dim = SIZES[size]
    c.model.kv_heads = c.model.heads
    c.data.mixture.main = common.source("tfds:world_text:train", "text")
    c.data.mixture.main.max_rows = 10_000
    c.eval.mixture.main = common.source("tfds:world_text:dev", "text")
    c.batch = 16
    c.optimizer.name = "muon"
    c.optimizer.lr = 1e-2
    c.optimizer.schedule = "cosine"
    c.optimizer.decay = 0.1
    c.steps = 120 if size == "small" else 200
    return c


def sft():
    """Learns to answer, from demonstrations that are not all good."""
    c = common.base()
    root = placed(c)
    c.world.size = "medium"
    c.init = root + "/pretrain-" + c.world.get_oneway_ref("size")
    c.data.mixture.main = common.source("tfds:world_talk:train")
    c.eval.mixture.main = common.source("tfds:world_talk:dev")
    c.batch = 8
    c.steps = 650
    c.optimizer.lr = 3e-3
    c.optimizer.schedule = "cosine"
    c.optimizer.decay = 0.1
    return c


def judge():
    """A reward model, from the model of its size that has learned to answer."""
    c = reward_model.study()
    root = on_pairs(c)
    c.world.size = "medium"
    c.init = root + "/sft-" + c.world.get_oneway_ref("size")
    c.data.items_per_update = 16
    c.microbatches = 1
    c.epochs = 2
    c.optimizer.lr = 5e-4
    return c


def dpo():
    c = preference.study()
    root = on_pairs(c)
    c.init = root + "/" + POLICY
    c.data.items_per_update = 16
    c.epochs = 2
    c.optimizer.lr = 2e-4
    return c


def on_pairs(c):
    root = placed(c)
    c.world.data = "fine_grained"
    data = c.world.get_oneway_ref("data")
    c.data.mixture.main.path = root + "/data/" + data + ".jsonl"
    c.eval.mixture.main.path = root + "/data/held_out.jsonl"
    c.data.length = 256
    c.data.answer_length = 128
    c.batch = 8
    return root


def with_values():
    """PPO against a reward model."""
    c = ppo.study()
    before_a_judge(c)
    c.batch = 64
    c.objective.minibatches = 2
    c.steps = 32
    return c


def with_groups():
    """GRPO on what can be verified: arithmetic, programs, constraints."""
    c = grpo.tulu31()
    on_prompts(c)
    c.world.prompts = "verifiable"
    c.reward.terms.verifier.weight = 1.0
    c.rollout.group = 8
    c.batch = 8
    c.objective.minibatches = 2
    return c


def with_pairs():
    """Online DPO: the better of two answers, by a reward model, against the other."""
    c = online_dpo.study()
    before_a_judge(c)
    c.batch = 32
    return c


def with_the_best():
    """Expert iteration: fine-tuning on the best of eight answers."""
    c = best_of.study()
    before_a_judge(c)
    c.rollout.group = 8
    c.batch = 16
    return c


def before_a_judge(c):
    root = on_prompts(c)
    c.world.judge = "medium-fine_grained"
    c.reward.terms.model.model = root + "/judge-" + c.world.get_oneway_ref("judge")
    c.rollout.temperature = 1.0


def on_prompts(c):
    root = placed(c)
    c.world.prompts = "general"
    prompts = c.world.get_oneway_ref("prompts")
    c.data.mixture.main.path = root + "/data/prompts-" + prompts + ".jsonl"
    c.eval.mixture.main.path = root + "/data/prompts-dev.jsonl"
    c.data.mixture.main.format = c.eval.mixture.main.format = "prompt_only"
    c.init = root + "/" + POLICY
    c.reward.terms.gold = common.term(verifier="world", weight=0.0)
    c.rollout.prompt_length = 64
    c.rollout.max_new_tokens = 64
    c.steps = 40
    c.optimizer.lr = 5e-5  # more, and the worked steps of reasoning come apart
    c.eval.batch = 128
    c.eval.every = 10
    c.log.every = 1
    return root
