"""Two processes with two devices each sample and pack what one process does."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from easylm import sharding
from easylm.data.sequences import lay_out
from easylm.losses.masked import Mean
from easylm.models import base
from easylm.rewards.workers import Workers
from easylm.rollout.judge import Judge, Term
from easylm.rollout.packed import read, read_last, write
from easylm.rollout.rollouts import Rollout, everywhere
from easylm.training.progress import Phases
from tests.conftest import FAST
from tests.rollout import talk, test_packed
from tests.rollout.made import ask
from tests.several import free_port
from tests.tiny import ROOT

PROMPTS, GROUP, NEW = 8, 3, 12
PROGRAM = """
import sys, jax
from pathlib import Path
rank, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.distributed.initialize(f"localhost:{port}", 2, rank)
from tests.rollout import test_processes
test_processes.half(rank, folder)
"""


def sampled(layout, folder, sampling=None):
    """The samples of this process, answers to eight prompts of all."""
    own = folder / f"{layout.mesh.size}-{jax.process_index()}"
    tokenizer = talk.sentencepiece(own)
    tokenizer.stop_ids = (tokenizer.eos, *range(40, talk.VOCAB, 8))
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, talk.VOCAB, 4 + n) for n in range(PROMPTS)]
    rows = lay_out([[[(x, np.ones(len(x), np.float32))]] for x in ids], 32)
    judge = Judge(
        {"random": Term(verifier="random")},
        [ask(f"{n}?") for n in range(PROMPTS)].__getitem__,
        Workers(0),
    )
    model, params = talk.model()
    params = jax.tree.map(np.asarray, params)
    mine = sharding.held(PROMPTS, layout)
    place = lambda x: sharding.to_mesh(x[mine], PROMPTS, layout)
    with sharding.use(layout):
        put = lambda x, s: jax.make_array_from_callback(x.shape, s, lambda i: x[i])
        return Rollout(
            *(model, tokenizer, judge, layout, Phases()),
            sampling=sampling,
            group=GROUP,
            max_new_tokens=NEW,
            rows=8,
        )(
            jax.tree.map(put, params, base.shardings(model.spec, layout)),
            {
                "seqs": jax.tree.map(place, rows),
                "items": place(np.arange(PROMPTS)[:, None]),
            },
            jax.random.fold_in(jax.random.key(7), 0),
        )


def half(rank, folder):
    """What one of the processes does."""
    layout = sharding.make_layout("fsdp")
    _check_packed(test_packed.items(5 if rank else 37), layout)
    given = {"a": Mean(1.0 + rank, 2.0), "b": Mean(0.5, 1.0)}
    assert everywhere(given) == {"a": Mean(3.0, 4.0), "b": Mean(1.0, 2.0)}
    samples = sampled(layout, folder, sharding.regrouped(layout, "tensor=4"))
    used = everywhere(samples.metrics)["rollout/utilisation"]
    names = ("items", "tokens", "lengths", "finished", "logps")
    found = {name: getattr(samples, name) for name in names}
    np.savez(folder / f"{rank}.npz", used=used, **found)


def _check_packed(given, layout):
    """Of other items than the other process has, and of fewer."""
    packed, expected = test_packed.packed_of(given, layout), test_packed.answers(given)
    assert packed.rows == 32
    back = read(packed, packed.seqs.tokens, test_packed.WIDTH)
    np.testing.assert_array_equal(back, expected)
    back = read(packed, write(packed, expected), test_packed.WIDTH)
    np.testing.assert_array_equal(back, expected)
    last = [ids[-1] for item in given for ids, _ in item]
    np.testing.assert_array_equal(read_last(packed, packed.seqs.tokens), last)


def test_two_processes_sample_what_one_does_and_pack_their_own(tmp_path):
    port = free_port()
    env = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=2 {FAST}",
        "PYTHONPATH": ROOT,
    }
    start = lambda rank: subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(rank), str(port), str(tmp_path)],
        env=env,
        stderr=subprocess.PIPE,
        text=True,
    )
    processes = [start(0), start(1)]
    one = sampled(sharding.make_layout("data", devices=jax.devices()[:1]), tmp_path)
    try:
        said = [process.communicate(timeout=300)[1][-3000:] for process in processes]
    finally:
        [process.kill() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    first, second = (np.load(Path(tmp_path, f"{rank}.npz")) for rank in (0, 1))
    for name in ("items", "tokens", "lengths", "finished"):
        both = np.concatenate([first[name], second[name]])
        np.testing.assert_array_equal(both, getattr(one, name), err_msg=name)
    both = np.concatenate([first["logps"], second["logps"]])
    np.testing.assert_allclose(both, one.logps, atol=1e-4)
    assert first["used"].tolist() == second["used"].tolist()
    assert first["used"][0] == one.lengths.sum()
    assert 0.3 < first["used"][0] / first["used"][1] <= 1
