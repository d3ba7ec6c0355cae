"""What every run has. A config file starts from `base()` and states what it changes."""

import ml_collections
from ml_collections.config_dict import placeholder

from easylm.errors import UserError


def base() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.init = ""  # directory to start from: Hugging Face, or a workdir; "": from scratch
    c.tokenizer = (
        ""  # directory or file; "": that of init; "train": learn one from data
    )
    c.template = "tulu"  # how a conversation becomes text: data/chat.py

    c.model = ml_collections.ConfigDict()
    c.model.name = ""  # a preset such as "llama:3.2-1b"; "": the shape of init
    c.model.vocab_size = placeholder(int)  # None keeps what the preset says, also below
    c.model.max_len = placeholder(int)  # positions; more than it was trained for, say
    c.model.dtype = "bfloat16"  # of the computation; master weights are float32
    c.model.param_dtype = "float32"
    c.model.attention = "auto"  # xla, splash (TPU), cudnn (GPU); auto: xla or splash
    c.model.remat = "full"  # none, dots, full: less memory, more time
    c.model.dropout = 0.0
    c.model.rope_dtype = placeholder(str)
    c.model.unroll = placeholder(int)
    c.model.logits_chunk = placeholder(int)
    c.model.head = placeholder(str)  # "score": a reward model; "both"
    c.model.scores = placeholder(int)  # of a reward model
    c.model.score_std = placeholder(float)
    c.model.lora_rank = 0
    c.model.lora_alpha = 16.0
    c.model.lora_targets = placeholder(str)

    c.mesh = "fsdp"  # a preset of sharding.py, or "data=2,fsdp=-1,tensor=4"
    c.rules = ml_collections.ConfigDict()  # changes to sharding.RULES

    c.data = ml_collections.ConfigDict()
    c.data.mixture = ml_collections.ConfigDict()  # name -> source(...)
    c.data.length = 2048  # tokens in a row
    c.data.packing = True  # several examples in a row
    c.data.bad_rows = "error"  # or "skip": counted by reason
    c.data.too_long = "truncate"  # or "drop"
    c.data.items_per_update = placeholder(int)  # exactly so many; None: what fits
    c.data.items_per_row = 32  # at most so many pairs
    c.data.answer_length = placeholder(int)  # tokens of one side of a pair, at most
    c.data.answers = 2  # answers of an item: 2 are a pair
    c.data.ratings = 0  # numbers that come with each answer and are used
    c.data.variants = ""  # further answers made from a pair: data/variants.py
    c.data.cache = ""  # where token counts are kept; "": the workdir

    c.batch = 32  # rows of an update, over all devices
    c.microbatches = 1  # parts of the batch that are in memory one at a time
    c.epochs = 1
    c.steps = placeholder(int)  # instead of epochs

    c.reference = ml_collections.ConfigDict()
    c.reference.path = ""  # a directory; "": where the policy starts; "none"
    c.reference.cache = ""  # a file: its log-probabilities are computed only once

    c.objective = ml_collections.ConfigDict()
    c.objective.name = "sft"  # options of the objective are set beside it
    c.reduction = "mean"  # over scored tokens, or "sum"

    c.train = ""  # regular expressions of parameter names: train only these,
    c.freeze = ""  # do not train these
    c.optimizer = ml_collections.ConfigDict(
        {"name": "adamw", "lr": 2e-5, "schedule": "linear", "warmup": 0.03}
    )
    c.optimizer.clip = 1.0
    c.optimizer.offload = False  # its state waits in the memory of the host
    c.optimizer.decay = 0.0

    c.checkpoint = ml_collections.ConfigDict()
    c.checkpoint.every = 500  # iterations; the last is always saved
    c.checkpoint.keep = 2
    c.checkpoint.keep_every = 0  # these are never deleted

    c.log = ml_collections.ConfigDict({"every": 10, "tensorboard": True})
    c.log.wandb = ""  # project name

    c.profile = ""  # "10:13": a trace of iterations 10 to 12 in workdir/profile

    c.eval = ml_collections.ConfigDict({"every": 500, "batch": placeholder(int)})
    c.eval.mixture = ml_collections.ConfigDict()

    c.sample = ml_collections.ConfigDict({"every": 500, "prompts": ()})
    c.sample.max_new_tokens = 128
    c.sample.temperature = 0.0
    return c


def pairs(c, *, answer_length: int, per_update: int, rows: int) -> None:
    """Two answers of up to `answer_length` tokens to a pair, packed into rows."""
    if "main" not in c.data.mixture:
        c.data.mixture.main = source(placeholder(str), "preferences")
        c.eval.mixture.main = source(placeholder(str), "preferences")
    c.data.answer_length = answer_length
    c.data.length = 2 * answer_length
    c.data.items_per_update = per_update
    c.batch = rows


def online(c, *, prompt_length: int, max_new_tokens: int) -> None:
    """Data are prompts; the answers are sampled, and rewarded."""
    if "main" not in c.data.mixture:
        c.data.mixture.main = source(placeholder(str), "prompts")
        c.eval.mixture.main = source("", "prompts")
    c.data.too_long = "drop"
    c.data.length = prompt_length + max_new_tokens
    c.data.items_per_row = 1
    c.data.prompt_bos = True  # whether prompts begin with BOS, as in fine-tuning

    c.rollout = ml_collections.ConfigDict({"group": 1})  # answers to each prompt
    c.rollout.rounds = 1  # of prompts, until enough groups have rewards that differ
    c.rollout.prompt_length = prompt_length  # longer prompts are dropped
    c.rollout.max_new_tokens = max_new_tokens
    c.rollout.temperature = 1.0
    c.rollout.top_k = 0
    c.rollout.top_p = 1.0
    c.rollout.min_p = 0.0
    c.rollout.stop_strings = ()  # beside the tokenizer's stop tokens
    c.rollout.rows = placeholder(int)  # that decode at a time; None: all
    c.rollout.max_gap = 0.1  # of log-probabilities, between sampler and trainer
    c.rollout.mesh = ""  # of the weights that sample; "": as they are trained
    c.rollout.rules = ml_collections.ConfigDict()

    c.ptx = ml_collections.ConfigDict({"mixture": {}})  # text for objective.ptx_weight
    c.ptx.batch = 8  # rows of it in an update

    c.reward = ml_collections.ConfigDict({"terms": {}})  # name -> term(...)
    c.reward.no_stop = placeholder(float)  # reward of an answer that the limit ended
    c.reward.gain = 1.0  # of the sum of the terms
    c.reward.bias = 0.0
    c.reward.overlong_buffer = 0  # tokens before the limit that cost more and more,
    c.reward.overlong_penalty = 1.0  # up to this
    c.reward.processes = placeholder(int)  # that verify; None: half of the cores
    c.reward.seconds = 10.0  # for one answer


def policy_gradient(c, advantage: str) -> None:
    """Every option of objectives/policy_gradient.py and of its losses."""
    c.objective.name = "policy_gradient"
    c.objective.advantage = advantage
    numbers = ("discount", "lam", "whiten_eps", "importance_cap", "kl_coef", "eps")
    numbers += ("kl_target", "value_weight", "value_clip", "entropy_weight")
    numbers += ("low", "high", "dual", "temperature", "ptx_weight")
    words = ("whitening", "loss", "level", "reduce", "kl", "kl_in", "keep_mode")
    counts = ("epochs", "minibatches", "keep", "kl_horizon", "ddof", "limit")
    switches = ("whiten_rewards", "normalize_rewards", "shuffle", "interleaved")
    switches += ("drop_equal", "drop_unfinished")
    options(
        c.objective,
        **dict.fromkeys(numbers, float),
        **dict.fromkeys(words, str),
        **dict.fromkeys(counts, int),
        **dict.fromkeys(switches, bool),
    )


def term(model=None, verifier: str = "", weight: float = 1.0):
    """A term of the reward: a reward model, or a verifier."""
    t = ml_collections.ConfigDict({"weight": weight})
    t.model = model if model is not None else ""  # directory; or several, "a,b"
    t.combine = "mean"  # of several: mean, min, uncertainty
    t.doubt = 0.1  # weight of the variance in "uncertainty"
    t.template = ""  # of the model, if it is not the one it was trained with
    t.length = placeholder(int)  # tokens that it reads; None: data.length
    t.verifier = verifier  # of easylm/rewards; "data": what each row asks for
    t.options = ml_collections.ConfigDict()  # of the verifier
    t.transform = ""  # a function of rewards/transforms.py,
    t.settings = ml_collections.ConfigDict()  # and its options
    return t


def options(section, **kinds: type) -> None:
    """Options that may be set; None keeps what the function that has it says."""
    for name, kind in kinds.items():
        section[name] = placeholder(kind)


def preset(arg: str, **presets):
    """The preset after the colon of `--config FILE:NAME`; "" is `default`."""
    name = arg or "default"
    if name not in presets:
        raise UserError(f"no preset {arg!r}; there are {', '.join(presets)}")
    return presets[name]()


def source(path: str, format: str = "messages", weight: float = 1.0):
    """One source of a mixture. See data/formats.py for the formats."""
    part = ml_collections.ConfigDict({"path": path, "format": format})
    part.weight = weight  # epochs of it per epoch of the run
    part.max_rows = placeholder(int)  # the first so many rows
    part.subset = placeholder(int)  # so many usable items, a random choice
    return part
