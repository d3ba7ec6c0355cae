"""The programs of a run, ready to be lowered: what the loop would compile, with shapes
in place of arrays.

They are the loop's own functions. Nothing is read but the shape of the models, so a
preset may stand for a checkpoint that lies elsewhere: config.init="llama:2-13b".
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from easylm import sharding
from easylm.data import variants
from easylm.data.sequences import Sequences
from easylm.errors import UserError
from easylm.models import base, transformer
from easylm.models.answers import token_values
from easylm.models.heads import token_logps
from easylm.objectives import base as objectives
from easylm.objectives import online as of_online
from easylm.pods.runs import (
    FROZEN,
    OPTIMIZER,
    PARAMETERS,
    ROLLOUT,
    SAMPLER,
    TRAIN,
    WEIGHTS,
    Argument,
    Program,
    Run,
)
from easylm.rollout import rollouts, scorer
from easylm.rollout.sampler import Prompts, ready
from easylm.rollout.scorer import token_rewards
from easylm.sharding import Layout
from easylm.training import checkpoint, flops, online, reference, setup
from easylm.training.step import State


def programs(config, layout: Layout) -> Run:
    """What an iteration of the run compiles and holds on this mesh."""
    setup.check_batch(config, layout)
    tokenizer = SimpleNamespace(vocab_size=0)  # all that a plan asks of one
    # Outside of sharding.use: what is computed at once cannot be on absent devices.
    model = setup.make_model(config, tokenizer)
    _check_heads(model, layout)
    value = online.make_value(config, tokenizer, model)
    objective = objectives.make(model=model, value=value, **config.objective)
    steps = config.steps or 1000  # a schedule needs an end
    optimizer, _, trained = setup.make_optimizer(config, objective, steps)
    parts = objective.spec, optimizer, trained, layout
    state = setup.abstract_state(*parts, offload=config.optimizer.offload)
    made = _Shapes(config, layout, model, value, objective, tokenizer, state)
    return made.run(setup.make_step(config, objective, optimizer, trained))


class _Shapes:
    def __init__(self, config, layout, model, value, objective, tokenizer, state):
        self.config, self.layout = config, layout
        self.model, self.value, self.objective = model, value, objective
        self.state = (
            Argument(PARAMETERS, state.params),
            Argument(OPTIMIZER, state.opt_state),
        )
        self.count = state.step
        self.key = jax.eval_shape(lambda: jax.random.key(0))
        self.length = config.data.length
        self.reference = self._reference(tokenizer)
        self.judges = self._judges() if objective.online else {}

    def run(self, step) -> Run:
        before = self._online() if self.objective.online else self._offline()
        batch, rows = self._batch()
        train = Program(
            TRAIN,
            _Joined(step, self.count),
            (*self.state, Argument("batch", batch)),
            self.layout,
            times=self.objective.updates,
            tokens=rows * self.length,
        )
        held = {"policy": self.state}
        if self.reference:
            held["reference"] = (self._of_reference(),)
        for name, (_, _, argument) in self.judges.items():
            held[name] = (argument,)
        tokens = rows * self.length * self.objective.updates
        return Run(
            (*before, train),
            held,
            tuple(filter(None, (self.model, self.value))),
            tokens,
            self.config.steps,
            self.config.microbatches,
            self._slots(),
            self._flops(rows) * self.objective.updates,
        )

    def _flops(self, rows: int) -> float:
        """Of an update, its rows full of whole segments."""
        found = 0.0
        for c in (m.config for m in (self.model, self.value) if m is not None):
            near = min(c.sliding_window or self.length, self.length)
            pairs = c.layers * rows * self.length * (near + 1) / 2
            found += flops.train_flops(c, rows * self.length, pairs)
        return found

    def _slots(self) -> int:
        if not self.objective.online:
            return 0
        options = self.config.rollout
        answers = self.config.batch * options.group
        rows = min(options.rows or answers, answers)
        return rows * (options.prompt_length + options.max_new_tokens)

    # What is frozen.

    def _reference(self, tokenizer):
        config = self.config
        if not self.objective.reference or config.reference.path == "none":
            return None
        return reference.make_model(config, tokenizer, self.model)

    def _of_reference(self) -> Argument:
        return Argument(FROZEN, base.abstract(self.reference.spec, self.layout))

    def _judges(self) -> dict:
        """name -> (model, its weights, its parameters)."""
        found = {}
        for name, term in sorted(self.config.reward.terms.items()):
            if not term.weight or term.verifier:
                continue
            if not term.model:
                raise UserError(
                    f"no reward model: set config.reward.terms.{name}.model to a"
                    " directory, or to a preset of its shape such as llama:2-13b"
                )
            for number, path in enumerate(term.model.split(",")):
                shape = _scoring(checkpoint.shape_of(path), self.model.config)
                made = transformer.make(shape)
                made = made._replace(spec=base.compute_spec(made))
                weights = jnp.full(shape.scores, 1 / shape.scores)
                params = Argument(FROZEN, base.abstract(made.spec, self.layout))
                found[f"reward {name}{number or ''}"] = made, weights, params
        return found

    # Batches.

    def _rows(self, rows: int, length: int) -> Sequences:
        place = self.layout.sharding("batch", "length")
        one = lambda dtype: jax.ShapeDtypeStruct((rows, length), dtype, sharding=place)
        whole = one(jnp.int32)
        return Sequences(whole, one(jnp.float32), whole, whole)

    def _of_rows(self, shape, dtype=jnp.float32):
        where = self.layout.sharding("batch")
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    def _loaded(self) -> dict:
        """A batch as the loader places it."""
        config, objective, rows = self.config, self.objective, self.config.batch
        batch = {"seqs": self._rows(rows, self.length)}
        if objective.pairs is not None:
            shape, answers = (rows, config.data.items_per_row), config.data.answers
            if config.data.variants:
                answers += variants.get(config.data.variants)[1]
            batch["items"] = self._of_rows(shape, jnp.int32)
            batch["ratings"] = self._of_rows((*shape, answers, config.data.ratings))
        if objective.mismatched:
            batch["mismatched"] = batch["seqs"]
        return batch

    def _batch(self) -> tuple[Any, int]:
        """What the step gets, and its rows."""
        objective = self.objective
        params = self.state[0].tree
        refs = self._of_reference().tree if self.reference else None
        if objective.online:
            seqs = self._rows(self._update_rows(), self.length)
            make = lambda p, r, s: objective.blank(p, self._frozen(r), s)
            given = seqs
        else:
            given = self._loaded()

            def make(p, r, batch):
                key = jax.random.key(0)
                return objective.prepare(p, self._frozen(r), batch, key).batches[0]

        with sharding.use(self.layout):
            found = jax.eval_shape(make, params, refs, given)
        rows = (given if objective.online else given["seqs"]).tokens.shape[0]
        return jax.tree.map(partial(self._placed, rows), found), rows

    def _placed(self, rows, x):
        """As it arrives at the step: split by rows, and by time where it has any."""
        names = ("batch",) if x.ndim and x.shape[0] == rows else ()
        if names and x.ndim == 2 and x.shape[1] == self.length:
            names = "batch", "length"
        where = self.layout.sharding(*names)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    def _frozen(self, params) -> dict:
        if params is None:
            return {}
        tokens = self._token_logps(self.reference)
        return {
            "reference": reference.Reference(
                partial(self._item_logps(), params),
                lambda batch: tokens(params, batch["seqs"]),
                self.reference.config,
            )
        }

    def _item_logps(self) -> Callable:
        """(parameters, batch) -> what the reference says of whole answers."""
        parts, temperature = self.config.microbatches, self.objective.temperature
        return partial(reference.item_logps, self.reference, parts, temperature)

    def _token_logps(self, model) -> Callable:
        return partial(token_logps, model, temperature=self.objective.temperature)

    @property
    def _minibatches(self) -> int:
        """Into how many updates the answers of an iteration are cut."""
        return self.config.objective.get("minibatches") or 1

    def _update_rows(self) -> int:
        """Rows of an update when every answer is as long as it may be."""
        config = self.config
        answers = config.batch * config.rollout.group
        each = 1
        if config.objective.name == "online_preference":
            pairs = config.objective.get("pairs") or "extremes"
            each = config.rollout.group if pairs == "extremes" else 2
        if config.objective.name == "best_of":
            each = config.rollout.group / (config.objective.get("keep") or 1)
        most = math.ceil(answers / each / self._minibatches)
        rows = online.make_rows(config, self.layout)
        step = of_online.step_of(most, rows, 1)
        return -(-most // step) * step

    # Programs beside the step.

    def _offline(self) -> tuple[Program, ...]:
        if not self.reference or self.config.reference.cache:
            return ()
        function = jax.jit(self._item_logps())
        given = self._of_reference(), Argument("batch", self._loaded())
        tokens = self.config.batch * self.length
        return (Program("reference", function, given, self.layout, tokens=tokens),)

    def _online(self) -> tuple[Program, ...]:
        seqs = Argument("batch", self._rows(self._update_rows(), self.length))
        tokens = self._update_rows() * self.length
        forward = dict(layout=self.layout, times=self._minibatches, tokens=tokens)
        found = [*self._sampling()]
        for name, (model, weights, params) in self.judges.items():
            function = jax.jit(partial(token_rewards, model, weights))
            found.append(self._scoring(name, function, params))
        policy = of_online.policy(self.state[0].tree)
        logps = jax.jit(self._token_logps(self.model))
        given = Argument(PARAMETERS, policy), seqs
        found.append(Program("log-probabilities", logps, given, **forward))
        if self.reference:
            logps = jax.jit(self._token_logps(self.reference))
            given = self._of_reference(), seqs
            found.append(Program("reference", logps, given, **forward))
        if self.value is not None:
            values = jax.jit(partial(token_values, self.value))
            given = Argument(PARAMETERS, self.state[0].tree["value"]), seqs
            found.append(Program("value", values, given, **forward))
        return tuple(found)

    def _scoring(self, name, function, params) -> Program:
        rows = scorer.at_a_time(online.JUDGED, self.layout)
        answers = self.config.batch * self.config.rollout.group
        seqs = Argument("batch", self._rows(rows, self.length))
        return Program(
            name,
            function,
            (params, seqs),
            self.layout,
            times=-(-answers // rows),
            tokens=rows * self.length,
        )

    def _sampling(self) -> tuple[Program, ...]:
        """The weights laid out for sampling, and the answers."""
        config, model = self.config, self.model
        options = config.rollout.to_dict()
        layout = sharding.regrouped(self.layout, options["mesh"], options["rules"])
        new, group = options["max_new_tokens"], options["group"]
        known = ("temperature", "top_k", "top_p", "min_p", "rows")
        given = {k: options[k] for k in known if options[k] is not None}
        shape = config.batch, options["prompt_length"]
        prompts = Prompts(np.zeros(shape, np.int32), np.zeros(shape[:1], np.int32))
        with sharding.use(layout):
            made = ready(
                model,
                prompts,
                self.key,
                samples=group,
                stop_ids=(0,),
                max_new_tokens=new,
                **given,
            )
        rest = len(made.arguments) - 2
        names = [("batch",)] * 2 + [()] * rest  # the prompts, and what is no row
        given = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=made.layout.sharding(*name))
            for x, name in zip(made.arguments, names, strict=True)
        ]
        params = Argument(SAMPLER, base.abstract(base.compute_spec(model), layout))
        policy = Argument(PARAMETERS, of_online.policy(self.state[0].tree))
        moved = rollouts.weights(model, self.layout, layout)
        moving = (Program(WEIGHTS, moved, (policy,), self.layout, gives=(params,)),)
        answers = config.batch * group
        rollout = Program(
            ROLLOUT,
            made.program,
            (params, *(Argument("batch", x) for x in given)),
            made.layout,
            times=options["rounds"],
            tokens=answers * new,
            trips=new * max(1, -(-answers // (options["rows"] or answers))),
        )
        return (*(moving if moved else ()), rollout)


class _Joined:
    """The step as a function of the parts of its state, so that each has its kind."""

    def __init__(self, step, count):
        self._step, self._count = step, count

    def lower(self, params, opt_state, batch):
        return self._step.lower(State(self._count, params, opt_state), batch)

    def __call__(self, params, opt_state, batch):
        return self._step(State(self._count, params, opt_state), batch)


def _scoring(shape, policy):
    """A reward model's shape, computed as the policy is."""
    head = {} if shape.head != "lm" else {"head": "score", "scores": 1}
    return replace(shape, dtype=policy.dtype, remat=policy.remat, **head)


def _check_heads(model, layout) -> None:
    """Heads are split over the tensor axis: said with the sizes that divide them."""
    c, ways = model.config, layout.ways("kv_heads")
    if c.kv_heads % ways or c.heads % ways:
        fit = [
            n for n in range(1, c.kv_heads + 1) if c.kv_heads % n == c.heads % n == 0
        ]
        raise UserError(
            f"{c.heads} heads and {c.kv_heads} key heads do not divide over"
            f" tensor={ways}; sizes of that axis that do: {fit}"
        )
