"""From a config to what online objectives look at: the sampler and the rewards."""

import dataclasses

import jax
import numpy as np

from easylm import sharding
from easylm.errors import UserError
from easylm.models import base, hf, transformer
from easylm.objectives.online import Rows
from easylm.rewards import transforms
from easylm.rewards.workers import Workers
from easylm.rollout import judge, scorer
from easylm.rollout.rollouts import Rollout
from easylm.training import checkpoint
from easylm.training.reference import check_vocabulary

CHECKED = 1000  # rows whose ground truth is looked at before training starts
JUDGED = 8  # rows that a reward model reads at a time, or one on every device


def make_value(config, tokenizer, model):
    """The value model, or None: the reward model it starts from, or the policy."""
    if "value" not in config or config.objective.advantage != "gae":
        return None
    path = config.value.path
    how = transformer.computation(model.config)
    if not path:
        return transformer.make(
            dataclasses.replace(model.config, head="score", scores=1, lora_rank=0)
        )
    shape = checkpoint.shape_of(path)
    check_vocabulary(path, shape, model.config, tokenizer, "value model")
    if shape.scores != 1 and shape.head != "lm":
        raise UserError(f"value model {path} gives {shape.scores} scores, not one")
    return transformer.make(
        dataclasses.replace(shape, **how, head="score", scores=1, lora_rank=0)
    )


def load_value(config, value, layout):
    """Its first parameters, score head included."""
    path, key = config.value.path or config.init, jax.random.key(config.seed + 1)
    if not path:
        return base.init(value.spec, key, layout)
    if checkpoint.is_workdir(path):
        return checkpoint.load_params(path, value, layout, key)
    return hf.load(path, value, layout, key)


def make_rollouts(config, tokenizer, model, layout, phases):
    """-> rollout(dataset, group), with the rewards of the prompts of that data set."""
    judges = make_judges(config, tokenizer, layout)
    options = config.rollout.to_dict()
    other = options.pop("mesh"), options.pop("rules")
    sampling = sharding.regrouped(layout, *other)
    options.pop("prompt_length")
    group = options.pop("group")
    given = {name: x for name, x in options.items() if x is not None}

    def rollout(dataset, size=group):
        return Rollout(
            model,
            tokenizer,
            judges(dataset),
            layout,
            phases,
            sampling=sampling,
            group=size,
            **given,
        )

    return rollout


def make_rows(config, layout) -> Rows:
    """How answers are laid out for an update."""
    return Rows(config.data.length, layout.ways("batch") * config.microbatches)


def check(config) -> None:
    """Lengths that fit into each other."""
    needed = config.rollout.prompt_length + config.rollout.max_new_tokens
    if config.data.length < needed:
        raise UserError(
            f"prompt and answer may have {needed} tokens together, but config.data"
            f".length is {config.data.length}; set it to {needed} or more"
        )
    if config.objective.get("interleaved") and config.microbatches > 1:
        raise UserError("interleaved whitens over a whole update: set microbatches=1")
    if config.data.too_long != "drop":
        raise UserError("a prompt that is cut is another; set data.too_long='drop'")
    buffer, limit = config.reward.overlong_buffer, config.rollout.max_new_tokens
    if not 0 <= buffer <= limit:
        raise UserError(
            f"reward.overlong_buffer {buffer} is not among the {limit} tokens that an"
            f" answer may have; set 0 to {limit}"
        )


def make_judges(config, tokenizer, layout):
    """-> judge(dataset)."""
    section = config.reward
    terms = {
        name: _term(config, name, term, tokenizer, layout)
        for name, term in sorted(section.terms.items())
        if term.weight or term.verifier  # which is measured all the same
    }
    if not any(term.weight for term in terms.values()):
        raise UserError("no reward: set a model or a verifier in config.reward.terms")
    verifies = any(term.verifier for term in terms.values())
    workers = None
    if verifies:
        workers = Workers(section.processes, seconds=section.seconds)

    def of(dataset):
        for item in range(min(len(dataset.table), CHECKED)):
            example = dataset.example(item)
            for name, term in terms.items():
                if term.verifier:
                    judge.check_example(term, example, f"reward {name}, prompt {item}")
        return judge.Judge(
            terms,
            dataset.example,
            workers,
            no_stop=section.no_stop,
            buffer=section.overlong_buffer,
            penalty=section.overlong_penalty,
            gain=section.gain,
            bias=section.bias,
        )

    return of


def _term(config, name, term, tokenizer, layout) -> judge.Term:
    if bool(term.model) == bool(term.verifier):
        raise UserError(
            f"reward.terms.{name}: set model, or verifier; not both, not none"
        )
    if term.transform:
        transforms.check(term.transform, term.settings.to_dict())
    transforms.combine(np.zeros((1, 1)), term.combine)  # or it says what is wrong
    members = []
    for path in filter(None, (term.model or "").split(",")):
        length = term.length or config.data.length
        loaded = checkpoint.load_for_inference(
            path, layout, template=term.template, dtype=config.model.dtype
        )
        scorer.check(path, loaded, length)
        made = scorer.Scorer(loaded, layout, length=length, batch=JUDGED)
        members.append(scorer.of_samples(made, tokenizer, config.template))
    return judge.Term(
        term.weight,
        members,
        term.combine,
        term.doubt,
        term.verifier,
        term.options.to_dict(),
        term.transform,
        term.settings.to_dict(),
    )
