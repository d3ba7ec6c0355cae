"""A run whose data and workdir are in a bucket: what it leaves there, and resumes from.

The clients are the real ones, and talk to tests/bucket.py.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from easylm.errors import UserError
from easylm.losses.masked import Mean
from easylm.models import base, hf
from easylm.train import train
from easylm.training import checkpoint
from easylm.training.guard import FiniteGuard
from scripts import chat, eval_reward_model, export
from tests import bucket, tiny

STEPS = 4


@pytest.fixture(scope="module")
def store():
    made = bucket.store()
    yield made
    made.clear()


@pytest.fixture(scope="module")
def config(store, tmp_path_factory):
    """Conversations in two files, read by a pattern."""
    text = tiny.write_data(tmp_path_factory.mktemp("data")).read_text()
    lines = text.splitlines(keepends=True)
    for n, part in enumerate((lines[:30], lines[30:])):
        epath.Path(f"gs://runs/data/talk-{n}.jsonl").write_text("".join(part))
    changes = {"checkpoint.every": 2, "eval.every": 2, "log.tensorboard": True}
    changes |= {"sample.every": 4, "sample.prompts": ("Count from 3.",)}
    changes |= {"sample.max_new_tokens": 8}
    return lambda **more: tiny.config(
        "gs://runs/data/*.jsonl", steps=STEPS, **changes | more
    )


@pytest.fixture(scope="module")
def whole(config):
    """The workdir of a run that nobody disturbed."""
    workdir = epath.Path("gs://runs/whole")
    train(config(), str(workdir))
    return workdir


def test_everything_is_in_the_bucket_and_nothing_here(whole, store):
    names = [name.removeprefix("whole/") for name in store.names("runs")]
    files = {"run.json", "model.json", "done.json", "metrics.jsonl"}
    files |= {"tokenizer/tokenizer.json"}
    files |= {f"checkpoints/{i}/commit_success.txt" for i in (2, 4)}
    assert files <= set(names)
    folders = {name.split("/")[0] for name in names if "/" in name}
    assert {"cache", "checkpoints", "tensorboard", "tokenizer"} <= folders
    assert not [name for name in names if "tmp" in name]
    logged = {name for line in tiny.lines(whole) for name in line}
    assert {"train/loss", "eval/loss", "samples/0"} <= logged
    assert not pathlib.Path("gs:").exists()


def test_a_killed_run_goes_on_from_its_last_whole_checkpoint(config, whole, store):
    """An object store renames nothing: a file in it says that a checkpoint is whole."""
    for (place, name), (_, data) in list(store.objects.items()):
        if name.startswith("whole/") and "/done.json" not in name:
            store.put((place, name.replace("whole/", "run/", 1)), data)
    del store.objects["runs", "run/checkpoints/4/commit_success.txt"]
    store.changed()
    workdir = epath.Path("gs://runs/run")
    train(config(**{"checkpoint.keep": 1}), str(workdir))
    tiny.assert_same_run(whole, workdir, STEPS)
    assert checkpoint.is_done(workdir)
    kept = {p.name for p in (workdir / "checkpoints").iterdir()}
    assert kept == {"4"}  # older ones are deleted
    clients = {who for _, who, _ in store.asked}
    assert clients == {"gcsfs", "tensorstore", "gcloud-python"}


def test_another_config_is_refused(config, whole):
    with pytest.raises(UserError, match=r"optimizer.lr: 0.003 -> 0.1"):
        train(config(**{"optimizer.lr": 0.1}), str(whole))


def test_a_batch_that_is_not_finite_is_kept(store):
    guard, nan = FiniteGuard("gs://runs/broken"), Mean(jnp.array(jnp.nan), 1.0)
    guard.check(1, {"items": jnp.arange(3)}, {"loss": nan, "grad_norm": nan})
    with pytest.raises(UserError, match="iteration 1 is not finite.*gs://runs/broken/"):
        guard.flush()
    with epath.Path("gs://runs/broken/nonfinite-1-0.npz").open("rb") as file:
        assert np.load(file)["items"].tolist() == [0, 1, 2]


def test_models_are_read_from_there_and_written_there(whole, monkeypatch, capsys):
    out = "gs://runs/exported"
    argv = ["export.py", str(whole), out, "--dtype=float32"]
    monkeypatch.setattr(sys, "argv", argv)
    export.main()
    one, other = (checkpoint.load_for_inference(x).params for x in (str(whole), out))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    capsys.readouterr()
    options = ["--prompt", "Count from 3.", "--max-new-tokens=8", "--mesh=data"]
    chat.main([out, *options])
    assert len(capsys.readouterr().out.strip()) > 3


def test_an_evaluation_is_written_beside_the_model(whole, store, capsys):
    loaded = checkpoint.load_for_inference(whole)
    shape = base.override(loaded.model.config, head="score")
    score = {"score": np.ones((shape.dim, 1), np.float32)}
    params = {k: v for k, v in loaded.params.items() if k != "unembed"} | score
    hf.save("gs://runs/judge", params, shape, loaded.tokenizer, dtype="float32")
    row = {"prompt": "Count.", "candidates": ["1", "1 2"], "gold": [0, 1]}
    data = epath.Path("gs://runs/best.jsonl")
    data.write_text(json.dumps(row) + "\n")
    argv = ["--model", "gs://runs/judge", "--data", str(data), "--length=64"]
    eval_reward_model.main([*argv, "--template=tulu"])
    written = epath.Path("gs://runs/judge/eval_best_of_n.json")
    assert json.loads(written.read_text())["kind"] == "best_of_n"
