"""From a config to the parts of a run: tokenizer, model, data, first parameters."""

from collections import Counter
from functools import partial

import jax
import numpy as np
import optax
from etils import epath
from jax.experimental import multihost_utils

from easylm.data import chat, encode, formats, index, pipeline, sources
from easylm.data import tokenizer as tokenizers
from easylm.data.loader import place
from easylm.errors import UserError
from easylm.evals import comparisons, likelihood, rewards, samples
from easylm.models import base, hf, transformer
from easylm.sharding import Layout, check_divides
from easylm.training import checkpoint, online, optimizer, reference, select
from easylm.training.step import State, init_state, train_step


def check_batch(config, layout: Layout) -> None:
    """Says what to change when the batch does not divide as it must."""
    for name, rows in (("batch", config.batch), ("eval.batch", config.eval.batch)):
        if rows is not None:
            check_divides(rows, "batch", layout, f"config.{name}")
    check_divides(config.data.length, "length", layout, "config.data.length")
    if "rollout" in config:
        return  # an update has as many rows of answers as divide
    ways = layout.ways("batch") * config.microbatches
    if config.batch % ways:
        below, above = config.batch // ways * ways, (config.batch // ways + 1) * ways
        raise UserError(
            f"config.batch {config.batch} does not divide into {config.microbatches}"
            f" microbatches on {layout.ways('batch')} devices; use"
            f" {f'{below} or {above}' if below else above} rows"
        )


def make_tokenizer(config, workdir):
    """The tokenizer the config names; a copy stays in workdir/tokenizer."""
    kept = epath.Path(workdir) / "tokenizer"
    path = config.tokenizer or config.init
    if not path:
        raise UserError("no tokenizer: set config.tokenizer or config.init")
    if jax.process_index() == 0 and not kept.exists():
        if path == "train":
            _train_tokenizer(config, kept)
        else:
            if not config.tokenizer and checkpoint.is_workdir(path):
                path = epath.Path(path) / "tokenizer"
            template = chat.source(config.template)
            tokenizers.load(str(path)).save(str(kept), chat_template=template)
    _barrier("tokenizer")
    return tokenizers.load(str(kept))


def make_model(config, tokenizer) -> base.Model:
    """The preset, or the shape of the checkpoint, with the config's changes."""
    changes = {k: v for k, v in config.model.items() if v is not None and k != "name"}
    if config.model.name:
        shape = base.config_for(config.model.name, **changes)
    elif not config.init:
        raise UserError("no model: set config.model.name or config.init")
    else:
        shape = base.override(checkpoint.shape_of(config.init), **changes)
    if tokenizer.vocab_size > shape.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model only"
            f" {shape.vocab_size}; set config.model.vocab_size or another tokenizer"
        )
    longest = min(config.data.length, config.data.answer_length or config.data.length)
    if longest > shape.max_len:
        raise UserError(
            f"config.data.length {longest} is more than the {shape.max_len} positions"
            " of the model; shorten it, or data.answer_length where rows hold pairs"
        )
    return transformer.make(shape)


def make_data(config, objective, tokenizer, model, workdir, evaluation=False):
    """The data set over the config's mixture, ready to be placed on the mesh."""
    section = config.eval if evaluation else config.data
    prompts = config.rollout.prompt_length if objective.online else None
    rows = (evaluation and config.eval.batch) or config.batch
    if prompts and not evaluation:
        rows *= config.rollout.rounds
    data = _mixture(config, section)
    compares = objective.pairs is not None
    return pipeline.build(
        data,
        encoder=_encoder(config, objective, tokenizer, model.config.vocab_size),
        batch_rows=rows,
        length=prompts or config.data.length,
        seed=config.seed,
        packing=config.data.packing and not prompts,
        items_per_row=config.data.items_per_row if compares else None,
        items_per_update=config.data.items_per_update,
        mismatched=objective.mismatched,
        answer_length=config.data.answer_length,
        evaluation=evaluation,
        **_shared(config, workdir),
    )


def make_ptx(config, objective, tokenizer, model, workdir):
    """Other text that is trained on beside the answers to prompts, or None."""
    if not objective.online or not config.objective.get("ptx_weight"):
        return None
    template, length = chat.get(config.template), config.data.length
    vocab = model.config.vocab_size
    return pipeline.build(
        _mixture(config, config.ptx) | {"too_long": "truncate"},
        encoder=encode.sft_encoder(
            tokenizer, template, length=length, vocab_size=vocab
        ),
        batch_rows=config.ptx.batch * objective.updates,
        length=length,
        seed=config.seed,
        **_shared(config, workdir),
    )


def _shared(config, workdir) -> dict:
    """How the processes share the reading of data."""
    return dict(
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        gather=partial(multihost_utils.process_allgather, tiled=True),
        cache_dir=config.data.cache or str(epath.Path(workdir) / "cache"),
    )


def _mixture(config, section) -> dict:
    named = sorted(section.mixture.items())
    return {
        "mixture": [{**part.to_dict(), "name": name} for name, part in named],
        "bad_rows": config.data.bad_rows,
        "too_long": config.data.too_long,
    }


def fetcher(data, ptx, layout):
    """fetch(iteration) -> the batch on the mesh, with other text if there is any."""

    def fetch(i: int) -> dict:
        batch = place(data, i, layout)
        return batch if ptx is None else batch | {"ptx": place(ptx, i, layout)["seqs"]}

    return fetch


def make_evaluation(config, objective, freeze, tokenizer, model, layout, workdir):
    """evaluate(params) -> {name: float} over the held-out mixture, if there is one."""
    given = any(part.path for part in config.eval.mixture.values())
    if not given or not config.eval.every:
        return None
    data = make_data(config, objective, tokenizer, model, workdir, evaluation=True)
    if objective.online:
        return rewards.make(freeze(data, "eval")["rollout"], data, layout)
    if objective.pairs is None:
        return likelihood.make(objective, data, layout)
    return comparisons.make(objective, freeze(data, "eval"), data, layout)


def make_freezer(config, objective, tokenizer, model, layout, phases):
    """-> freeze(dataset, part) -> {name: ...}, the frozen things `prepare` looks at."""
    refer = _referrer(config, objective, tokenizer, model, layout)
    if not objective.online:
        return refer
    online.check(config)
    rollouts = online.make_rollouts(config, tokenizer, model, layout, phases)

    def freeze(dataset, part):
        if part == "eval":
            return {"rollout": rollouts(dataset, 1)}
        found = {"rollout": rollouts(dataset), "rows": online.make_rows(config, layout)}
        return found | refer(dataset, part)

    return freeze


def _referrer(config, objective, tokenizer, model, layout):
    if not objective.reference or config.reference.path == "none":
        return lambda dataset, part: {}
    if config.reference.cache and not objective.cacheable:
        raise UserError(
            "this objective asks the reference for more than a cache holds (kto for"
            " other prompts, tail_weight for tokens); set reference.cache=''"
        )
    made = reference.make(config, tokenizer, model, layout, objective.temperature)
    return lambda dataset, part: {"reference": made(dataset, part)}


def make_samples(config, tokenizer, model):
    """sample(params, key) -> [(prompt, answer)], or None."""
    if not config.sample.prompts or not config.sample.every:
        return None
    return samples.make(
        model,
        tokenizer,
        config.template,
        config.sample.prompts,
        max_new_tokens=config.sample.max_new_tokens,
        temperature=config.sample.temperature,
    )


def make_optimizer(config, objective, steps: int):
    """(optimizer, lr schedule, tree of bool: which parameters are trained)."""
    spec = objective.spec
    axes = base.map_spec(lambda s: s.axes, spec)
    updates = steps * objective.updates
    build = lambda section: optimizer.make(section, total_steps=updates, axes=axes)
    made, lr = build(config.optimizer)
    if "value" in spec:  # clipped and moved apart from the policy
        changes = {k: v for k, v in config.value.optimizer.items() if v is not None}
        other, _ = build({**config.optimizer, **changes})
        made = apart(made, other)
    train = config.train
    if config.model.lora_rank and not train:
        from easylm.models.lora import TRAIN as train
    freeze = "|".join(filter(None, (config.freeze, objective.constant)))
    return made, lr, select.trainable(spec, freeze, train)


def make_step(config, objective, optimizer, trained):
    """The compiled update: (state, batch) -> (state, metrics)."""
    step = partial(
        train_step,
        loss=objective.loss,
        optimizer=optimizer,
        trainable=trained,
        microbatches=config.microbatches,
        reduction=config.reduction,
        unit=objective.unit,
        after=objective.after,
    )
    return jax.jit(step, donate_argnums=0)


def apart(policy, value):
    """One optimizer of two: for the policy, and for the value model."""

    def owners(params):
        owner = lambda name, _: "value" if name.startswith("value/") else "policy"
        return select.map_named(owner, params)

    return optax.partition({"policy": policy, "value": value}, owners)


def abstract_state(spec, made, trainable, layout: Layout, offload=False) -> State:
    """The state as shapes and shardings: what init fills and restore aims at."""
    params = base.abstract(spec, layout)
    chosen, _ = select.partition(params, trainable)
    shapes = jax.eval_shape(made.init, chosen)
    axes = optimizer.state_axes(made, chosen, base.map_spec(lambda s: s.axes, spec))

    def place(names, x):
        where = layout.sharding(*names)
        where = where.with_memory_kind(optimizer.HOST) if offload and x.ndim else where
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    opt_state = jax.tree.map(place, axes, shapes, is_leaf=_is_axes)
    step = jax.ShapeDtypeStruct((), np.int32, sharding=layout.sharding())
    return State(step, params, opt_state)


def first_state(
    config, objective, model, value, made, trainable, target: State, layout
) -> State:
    """Iteration 0: parameters drawn, read from Hugging Face, or from another run."""
    key = jax.random.key(config.seed)
    if not config.init:
        params = base.init(model.spec, key, layout)
    elif checkpoint.is_workdir(config.init):
        params = checkpoint.load_params(config.init, model, layout, key)
    else:
        params = hf.load(config.init, model, layout, key)
    if value is not None:
        params = params | {"value": online.load_value(config, value, layout)}
    start = lambda params: init_state(objective.start(params), made, trainable)
    shardings = jax.tree.map(lambda x: x.sharding, target)
    return jax.jit(start, out_shardings=shardings, donate_argnums=0)(params)


def _encoder(config, objective, tokenizer, vocab_size: int):
    template = chat.get(config.template)
    if objective.online:
        bos = config.data.prompt_bos
        return encode.prompts_encoder(
            tokenizer, template, vocab_size=vocab_size, bos=bos
        )
    if objective.pairs is not None:
        return encode.answers_encoder(
            tokenizer,
            template,
            vocab_size=vocab_size,
            answers=config.data.answers,
            ratings=config.data.ratings,
            variants=config.data.variants,
        )
    length = config.data.length
    return encode.sft_encoder(tokenizer, template, length=length, vocab_size=vocab_size)


def _is_axes(x) -> bool:
    return type(x) is tuple and all(n is None or isinstance(n, str) for n in x)


def _train_tokenizer(config, folder) -> None:
    """A sentencepiece model of the run's own text, headers of the template included."""
    size = config.model.vocab_size or base.config_for(config.model.name).vocab_size
    texts = []
    for _, part in sorted(config.data.mixture.items()):
        if not part.path:
            raise UserError("tokenizer='train' needs a path for every data.mixture")
        read = formats.get(part.format)
        source = formats.open_for(read, part.path)
        for row in range(min(len(source), part.max_rows or len(source))):
            try:
                texts.append(_plain(read(source[row])))
            except sources.Skip:
                continue
            except sources.BadRow as bad:  # counted when the data is indexed
                where = source.where(row)
                index.refuse(bad, where, config.data.bad_rows, Counter())
    name = str(folder.parent / "tokenizer.model")
    headers = ("<|system|>", "<|user|>", "<|assistant|>")
    special = headers if config.template == "tulu" else ()
    trained = tokenizers.train(texts, name, size, special=special)
    trained.save(str(folder), chat_template=chat.source(config.template))
    epath.Path(name).unlink()


def _plain(example: dict) -> str:
    """Whatever is text in an example."""
    if isinstance(example, str):
        return example
    if "content" in example:
        return example["content"]
    values = example.values() if isinstance(example, dict) else example
    return "\n".join(_plain(x) for x in values if isinstance(x, str | dict | list))


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
