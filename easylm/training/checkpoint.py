"""Checkpoints of a run: the only file that knows orbax.

workdir/run.json             the config the run was started with
workdir/model.json           the shape of the model
workdir/tokenizer/           the tokenizer's own files
workdir/checkpoints/<i>/     state after iteration i: params, optimizer, step, and
                             what the objective adds: a reference that moves with
                             the run, a value model, a memory
workdir/done.json            {"steps": how many}: the run has come to its end

A checkpoint is written beside its final name and renamed when it is whole, so that what
is listed can be restored, whenever the process died.
"""

import dataclasses
import errno
import json
import os
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict

from easylm.errors import UserError
from easylm.models import base, hf, lora, transformer
from easylm.training.step import State

# What a resumed run may change freely: none of it alters what is learned.
FREE = (
    "checkpoint",
    "log",
    "eval",
    "sample",
    "mesh",
    "optimizer.offload",
    "model.attention",
    "rules",
    "profile",
    "model.remat",
    "model.unroll",
    "model.logits_chunk",
)

EXTRA = ("reference", "value", "memory")  # what objectives add to the model's own


class Checkpoints:
    """Saves in the background; keeps the last N, and every K-th for good."""

    def __init__(self, workdir, *, every: int, keep: int = 3, keep_every: int = 0):
        self.every = every
        self._manager = ocp.CheckpointManager(
            _absolute(workdir) / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep or None,
                keep_period=keep_every or None,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,
            ),
        )

    def latest(self) -> int | None:
        """The last iteration that was saved whole."""
        return self._manager.latest_step()

    def due(self, iteration: int, last: bool) -> bool:
        return last or bool(self.every and iteration % self.every == 0)

    def save(self, iteration: int, state: State) -> None:
        """Starts writing the state after `iteration` iterations."""
        if iteration == self.latest():
            return
        with _explained("save"):
            items = {k: ocp.args.StandardSave(v) for k, v in _items(state).items()}
            self._manager.save(iteration, args=ocp.args.Composite(**items))

    def restore(self, iteration: int, target: State) -> State:
        """The state, laid out as `target` (ShapeDtypeStructs with shardings)."""
        items = {k: ocp.args.StandardRestore(v) for k, v in _items(target).items()}
        with _explained("restore"):
            got = self._manager.restore(iteration, args=ocp.args.Composite(**items))
        extra = {name: got[name] for name in EXTRA if name in items}
        return State(got["rest"]["step"], got["params"] | extra, got["rest"]["opt"])

    def restore_params(self, iteration: int, target):
        item = ocp.args.StandardRestore(target)
        with _explained("restore"):
            args = ocp.args.Composite(params=item)
            return self._manager.restore(iteration, args=args)["params"]

    def close(self) -> None:
        """Waits until everything is on disk; raises what went wrong there."""
        with _explained("save"):
            self._manager.close()


def _absolute(workdir):
    """As orbax wants it: of gs://bucket, epath makes a folder below this one."""
    path = epath.Path(workdir)
    return path if "://" in os.fspath(path) else path.absolute()


def _items(state: State) -> dict:
    """Parameters apart, so that they can be read without the optimizer."""
    params = {k: v for k, v in state.params.items() if k not in EXTRA}
    extra = {k: v for k, v in state.params.items() if k in EXTRA}
    rest = {"step": state.step, "opt": state.opt_state}
    return {"params": params, "rest": rest, **extra}


class Loaded(NamedTuple):
    """A model ready to answer, or to score answers."""

    model: base.Model
    params: dict
    tokenizer: object
    template: str
    weights: tuple = ()  # of a reward model's scores in its reward


def load_for_inference(path, layout=None, *, template="", dtype="") -> Loaded:
    """The last checkpoint of a run, or a Hugging Face directory, with its tokenizer.

    The template is that of the run, or the one that came with the checkpoint, or "".
    Adapters are merged: what comes back is the plain model. `dtype`: of the
    computation, and of the weights that come from Hugging Face.
    """
    from easylm.data import tokenizer

    if not is_workdir(path):
        dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
        shape = hf.config_from_hf(path)
        shape = dataclasses.replace(shape, dtype=dtype, param_dtype=dtype)
        model, loaded = transformer.make(shape), tokenizer.load(str(path))
        template = template or ("jinja" if loaded.chat_template else "")
        return Loaded(model, hf.load(path, model, layout), loaded, template)
    config = json.loads(_read(epath.Path(path) / "run.json"))
    plain = dataclasses.replace(read_model_config(path), lora_rank=0)
    params = load_params(path, transformer.make(plain), layout)
    model = transformer.make(dataclasses.replace(plain, dtype=dtype or plain.dtype))
    loaded = tokenizer.load(str(epath.Path(path) / "tokenizer"))
    weights = tuple(config["objective"].get("weights") or ())
    return Loaded(model, params, loaded, template or config["template"], weights)


def load_params(workdir, model, layout=None, key=None):
    """The last parameters of another run, as `model` wants them.

    Adapters of that run are merged; those of `model`, if any, are fresh from `key`, and
    so is the score head of a reward model that starts from a language model.
    """
    saved = read_model_config(workdir)
    _check_head(workdir, saved, model.config)
    checkpoints = Checkpoints(workdir, every=0)
    iteration = checkpoints.latest()
    if iteration is None:
        raise UserError(f"{workdir} holds no finished checkpoint yet")
    target = base.abstract(transformer.make(saved).spec, layout)
    params = checkpoints.restore_params(iteration, target)
    checkpoints.close()
    if saved.lora_rank:
        params = lora.merge(params, saved)
    plain = transformer.make(dataclasses.replace(model.config, lora_rank=0))
    params = _with_head(params, plain.spec, key, layout)
    _check_shapes(workdir, params, plain.spec)
    if model.config.lora_rank:
        params = lora.attach(params, model.spec, key, layout)
    return params


def is_workdir(path) -> bool:
    return (epath.Path(path) / "model.json").exists()


def write_model_config(workdir, config) -> None:
    if jax.process_index() == 0:
        text = json.dumps(dataclasses.asdict(config), indent=2)
        (epath.Path(workdir) / "model.json").write_text(text)


def shape_of(path) -> transformer.TransformerConfig:
    """The shape of the model in a directory: of a run, or of Hugging Face.

    Or of a preset, "llama:2-13b", for those who plan a run whose models lie elsewhere.
    """
    if is_workdir(path):
        return read_model_config(path)
    if ":" in str(path) and path in base.variants():
        return base.config_for(path)
    return hf.config_from_hf(path)


def read_model_config(workdir) -> transformer.TransformerConfig:
    fields = json.loads(_read(epath.Path(workdir) / "model.json"))
    if fields["rope_scaling"]:
        fields["rope_scaling"] = transformer.RopeScaling(**fields["rope_scaling"])
    return transformer.TransformerConfig(**fields)


def check_config(workdir, config) -> None:
    """Writes the config of a new run; refuses to resume one that means another run.

    A run that has saved nothing yet starts again, with its tokenizer made anew.
    """
    check_same_run(workdir, config)
    if _differences(workdir, config):
        _forget(epath.Path(workdir) / "tokenizer")
    if jax.process_index() == 0:
        new = json.loads(config.to_json_best_effort())
        _write(epath.Path(workdir) / "run.json", json.dumps(new, indent=2))


def check_same_run(workdir, config) -> None:
    """Refuses a workdir that holds results of another run. Writes nothing."""
    lines = _differences(workdir, config)
    saved = any((epath.Path(workdir) / "checkpoints").glob("*"))
    if lines and (saved or is_done(workdir)):
        raise UserError(
            f"{workdir} holds a run with another config; use a new --workdir, or go"
            " back to the old values:\n" + "\n".join(lines)
        )


def write_done(workdir, steps: int) -> None:
    """The last thing a run writes: after it there is nothing left to do."""
    if jax.process_index() == 0:
        _write(epath.Path(workdir) / "done.json", json.dumps({"steps": steps}))


def _write(path, text: str) -> None:
    """At once: other processes may be reading it."""
    whole = path.with_name(f"{path.name}.tmp")
    whole.write_text(text)
    whole.replace(path)


def remove_done(workdir) -> None:
    """For a run that goes on, after all: its checkpoints are gone, or few."""
    if jax.process_index() == 0:
        (epath.Path(workdir) / "done.json").unlink(missing_ok=True)


def is_done(workdir) -> bool:
    return (epath.Path(workdir) / "done.json").exists()


def _check_head(workdir, saved, wanted) -> None:
    no_vocabulary = saved.head == "score" and not saved.tied
    if saved.head != "lm" and (
        wanted.head == "lm" or (wanted.head == "both" and no_vocabulary)
    ):
        raise UserError(
            f"{workdir} holds a reward model, which predicts no tokens; set"
            " config.model.head='score', or start from a language model"
        )


def _with_head(params, spec, key, layout):
    """Without the vocabulary that a reward model does not need; with a score head."""
    params = dict(params)
    if "unembed" not in spec:
        params.pop("unembed", None)
    if "score" in spec and "score" not in params:
        fresh = {"score": spec["score"]}
        params |= base.init(fresh, jax.random.key(0) if key is None else key, layout)
    return params


def _check_shapes(workdir, params, spec) -> None:
    got = {name: x.shape for name, x in flatten_dict(params, sep="/").items()}
    wanted = {name: s.shape for name, s in flatten_dict(spec, sep="/").items()}
    for name in sorted(got.keys() | wanted.keys()):
        if got.get(name) != wanted.get(name):
            raise UserError(
                f"{workdir} holds {name} as {got.get(name)}, the model wants"
                f" {wanted.get(name)}; use the model that the run was trained with"
            )


def _forget(folder) -> None:
    if jax.process_index() == 0 and folder.exists():
        folder.rmtree()


def _differences(workdir, config) -> list[str]:
    """Lines "key: old -> new" between the run in the workdir, if any, and this one."""
    path = epath.Path(workdir) / "run.json"
    if not path.exists():
        return []
    old = _flat(json.loads(path.read_text()))
    new = _flat(json.loads(config.to_json_best_effort()))
    return [
        f"  {key}: {old.get(key, '(absent)')!r} -> {new.get(key, '(absent)')!r}"
        for key in sorted(old | new)
        if not _is_free(key) and old.get(key, "(absent)") != new.get(key, "(absent)")
    ]


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in FREE)


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, name + ".") if isinstance(value, dict) else {name: value}
    return flat


def _read(path) -> str:
    if not path.exists():
        raise UserError(f"{path.parent} is not a workdir: it has no {path.name}")
    return path.read_text()


class _explained:
    """Turns a full disk into one line; everything else passes as it is."""

    def __init__(self, action: str):
        self.action = action

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is not None and _disk_full(error):
            raise UserError(
                f"could not {self.action} the checkpoint: the disk is full. The last"
                " whole checkpoint is untouched; free space and start again to resume"
            ) from error


def _disk_full(error) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "RESOURCE_EXHAUSTED" in str(error) or "No space left" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
