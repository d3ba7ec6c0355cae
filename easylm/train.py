"""The training loop: one for every objective. Read it from top to bottom.

    python -m easylm.train --config configs/sft.py --workdir DIR [--config.x.y=value]

The same command again resumes: the state after iteration i, the order of the data and
the randomness are functions of (config, i), so a resumed run is the uninterrupted one.
Exit codes: 0 done, 2 something to fix (one line says what), 75 stopped by SIGTERM or
Ctrl-C with everything saved.
"""

import sys

import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from easylm import sharding
from easylm.data.loader import Prefetch
from easylm.errors import UserError, explain, parse
from easylm.objectives import base as objectives
from easylm.pods import flags as compiler
from easylm.training import checkpoint, online, setup, together
from easylm.training.guard import FiniteGuard, Stop
from easylm.training.profiler import Profiler
from easylm.training.progress import Phases
from easylm.training.report import Report
from easylm.training.step import remember

PREEMPTED = 75  # the same command continues the run

CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything of the run is kept.")
COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of process 0, or auto.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
PROCESS = flags.DEFINE_integer("process", None, "Which of them this is.")


def train(config, workdir: str) -> dict[str, float]:
    """Runs the config to its end from wherever the workdir stands. Final numbers."""
    compiler.apply()
    phases = Phases()
    layout = sharding.make_layout(config.mesh, config.rules)
    setup.check_batch(config, layout)
    epath.Path(workdir).mkdir(parents=True, exist_ok=True)
    checkpoint.check_config(workdir, config)
    profiler = Profiler(config.profile, workdir)
    with sharding.use(layout), Stop() as stop, profiler:
        # What there is: tokenizer, model, objective, data, optimizer.
        with phases("index"):
            tokenizer = setup.make_tokenizer(config, workdir)
            model = setup.make_model(config, tokenizer)
            checkpoint.write_model_config(workdir, model.config)
            value = online.make_value(config, tokenizer, model)
            objective = objectives.make(model=model, value=value, **config.objective)
            data = setup.make_data(config, objective, tokenizer, model, workdir)
            ptx = setup.make_ptx(config, objective, tokenizer, model, workdir)
            steps = config.steps or data.batches(config.epochs)
            data.plan_ahead(steps)
        optimizer, lr, trained = setup.make_optimizer(config, objective, steps)
        step = setup.make_step(config, objective, optimizer, trained)

        # Where it stands: the last whole checkpoint, or the beginning.
        parts = objective.spec, optimizer, trained, layout
        target = setup.abstract_state(*parts, offload=config.optimizer.offload)
        checkpoints = checkpoint.Checkpoints(workdir, **config.checkpoint)
        start = checkpoints.latest() or 0
        if start < steps:
            checkpoint.remove_done(workdir)
        with phases("load"):
            if start:
                state = checkpoints.restore(start, target)
            else:
                state = setup.first_state(
                    config, objective, model, value, optimizer, trained, target, layout
                )
        with phases("reference"):
            freeze = setup.make_freezer(
                config, objective, tokenizer, model, layout, phases
            )
            frozen = freeze(data, "train")
            evaluate = setup.make_evaluation(
                config, objective, freeze, tokenizer, model, layout, workdir
            )
            del freeze
        sample = setup.make_samples(config, tokenizer, model)
        parts = objective, model, frozen
        report = Report(config, workdir, parts, phases, lr, steps, start)
        report.beginning(layout, data)

        batches = Prefetch(setup.fetcher(data, ptx, layout), start, steps)
        key = jax.random.key(config.seed)
        guard = FiniteGuard(workdir)
        stopped = False
        try:
            report.evaluate(evaluate, sample, state.params, start)
            for iteration, batch in report.waiting(batches, profiler):
                now = jax.random.fold_in(key, iteration)
                with phases("compile" if iteration == start else "train"):
                    ready = objective.prepare(state.params, frozen, batch, now)
                    state = remember(state, ready.params)
                    for part in ready.batches:
                        state, measured = step(state, part)
                        guard.check(iteration, part, measured)
                        report.add(measured, part["seqs"])
                    report.seen(iteration + 1, ready)
                    if iteration == start:
                        jax.block_until_ready(state)
                done = iteration + 1
                report.step(done)
                with phases("train"):  # several processes wait for the last update
                    stopped = stop.requested()
                if checkpoints.due(done, last=done == steps or stopped):
                    guard.flush()  # a state that a NaN has touched is never saved
                    with phases("save"):
                        checkpoints.save(done, state)
                if stopped:
                    break
                report.evaluate(evaluate, sample, state.params, done)
        except Exception as error:
            together.leave(error)
        finally:
            batches.close()
            with phases("save"):
                checkpoints.close()
            report.close()
    if stopped:
        print(f"stopped and saved after iteration {done} of {steps}", file=sys.stderr)
        sys.exit(PREEMPTED)
    checkpoint.write_done(workdir, steps)
    return report.end()


def main(argv) -> None:
    if len(argv) > 1:
        raise UserError(f"{argv[1]!r} is not a flag; write --config.name=value")
    if WORKDIR.value is None or CONFIG.value is None:
        raise UserError("give --config FILE and --workdir DIR")
    logging.set_verbosity(logging.WARNING)
    if COORDINATOR.value == "auto":
        jax.distributed.initialize()
    elif COORDINATOR.value:
        jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    with together.listening():
        train(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    explain(app.run, main, flags_parser=parse)
