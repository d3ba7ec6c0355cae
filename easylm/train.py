"""The training loop: one for every objective. Read it from top to bottom.

    python -m easylm.train --config configs/sft.py --workdir DIR [--config.x.y=value]

Run the same command again to resume: the state after iteration i, the data order and
the randomness are functions of (config, i), so a resumed run is the uninterrupted one.
"""

import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import config_flags

from easylm import objectives, sharding
from easylm.data.pipeline import Prefetch, place
from easylm.errors import UserError
from easylm.evals import likelihood, samples
from easylm.losses.masked import Mean
from easylm.training import checkpoint, flops, metrics, setup
from easylm.training.progress import Phases, Progress, peak_memory, rates, summary
from easylm.training.step import is_finite, train_step

PREEMPTED = 75  # exit code: stopped and saved; run the same command again

CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything of the run is kept.")
COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of process 0, or auto.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
PROCESS = flags.DEFINE_integer("process", None, "Which of them this is.")


def train(config, workdir: str) -> dict[str, float]:
    """Runs the config to its end, from wherever the workdir says it is."""
    phases = Phases()
    layout = sharding.make_layout(config.mesh, config.rules)
    sharding.check_divides(config.batch, "batch", layout, "config.batch")
    setup.check_microbatches(config, layout)
    epath.Path(workdir).mkdir(parents=True, exist_ok=True)
    checkpoint.check_config(workdir, config)
    with sharding.use(layout), setup.Stop() as stop:
        # What there is: tokenizer, model, objective, data.
        tokenizer = setup.make_tokenizer(config, workdir)
        model = setup.make_model(config, tokenizer)
        checkpoint.write_model_config(workdir, model.config)
        objective = objectives.base.make(model=model, **config.objective)
        parts = config, tokenizer, model, layout, workdir
        with phases("index"):
            data = setup.make_data(*parts, config.data.mixture, batch=config.batch)
            held_out = setup.make_evaluation(*parts)
        steps = config.steps or data.batches(config.epochs)

        # Where it stands: the first state, or the last that was saved.
        optimizer, lr, trainable = setup.make_optimizer(config, objective.spec, steps)
        target = setup.abstract_state(objective.spec, optimizer, trainable, layout)
        saves = checkpoint.Checkpoints(workdir, **config.checkpoint)
        start = saves.latest() or 0
        with phases("load"):
            if start:
                state = saves.restore(start, target)
            else:
                state = setup.first_state(
                    config, model, optimizer, trainable, target, layout
                )

        step = jax.jit(
            lambda state, batch: train_step(
                state,
                batch,
                loss=objective.loss,
                optimizer=optimizer,
                trainable=trainable,
                microbatches=config.microbatches,
                reduction=config.reduction,
            ),
            donate_argnums=0,
        )


if __name__ == "__main__":
    pass
