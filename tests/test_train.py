"""The loop, seen from outside: what a run leaves behind, how it stops and resumes."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest

from easylm.errors import UserError
from easylm.train import PREEMPTED, train
from easylm.training import checkpoint
from tests import tiny

LAST = {"checkpoint.every": 0}  # of the states only the last is saved


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run of six updates that nobody disturbed, and two of them recorded."""
    workdir = tmp_path_factory.mktemp("whole")
    train(tiny.config(data, profile="3:5"), workdir)
    return workdir


def test_loss_falls_and_everything_is_logged(whole):
    losses = tiny.losses(whole)
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    assert losses[6] < losses[1] - 0.5
    documented = re.findall(
        r"\| `([\w/]+)` \|", (tiny.docs() / "metrics.md").read_text()
    )
    logged = {name for line in tiny.lines(whole) for name in line}
    assert logged - {"step", "time"} <= set(documented)


def test_profile_shows_iterations_and_their_phases(whole):
    (trace,) = (whole / "profile/plugins/profile").glob("*/perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = [x["args"]["step_num"] for x in events if x.get("name") == "iteration"]
    assert steps == ["3", "4"]
    names = [event.get("name") for event in events]
    assert {"train", "data_wait", "save"} <= set(names) and "compile" not in names


def test_resumed_run_is_the_uninterrupted_one(data, whole, tmp_path):
    """And a checkpoint that was half written is not taken for whole."""
    workdir = tiny.killed_after(whole, 4, tmp_path / "run")
    half = workdir / "checkpoints" / "4"
    (half / "commit_success.txt").unlink(missing_ok=True)
    half.rename(workdir / "checkpoints" / "4.orbax-checkpoint-tmp-1")
    train(tiny.config(data, **LAST), workdir)
    tiny.assert_same_run(whole, workdir)
    timed = [line for line in tiny.lines(workdir) if "time/run" in line]
    began = [line["time"] - line["time/run"] for line in timed]
    assert len(timed) > 7 and max(began) - min(began) < 1
    assert timed[-1]["perf/goodput_run"] < timed[-1]["perf/goodput"]


def test_finished_run_has_nothing_left_to_do(data, whole, tmp_path, capsys):
    workdir = tiny.killed_after(whole, 6, tmp_path / "run")
    assert checkpoint.is_done(workdir)
    train(tiny.config(data, profile="2:4"), workdir)
    tiny.assert_same_run(whole, workdir)
    assert checkpoint.is_done(workdir)
    assert "profile none: " in capsys.readouterr().err


def test_run_resumes_on_another_mesh(data, whole, tmp_path):
    workdir = tiny.killed_after(whole, 3, tmp_path / "run")
    train(tiny.config(data, mesh="fsdp=2,tensor=2,context=2", **LAST), workdir)
    a, b = tiny.losses(whole), tiny.losses(workdir)
    np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-4)


def test_run_goes_on_with_its_optimizer_in_the_memory_of_the_host(
    data, whole, tmp_path
):
    workdir = tiny.killed_after(whole, 4, tmp_path / "run")
    train(tiny.config(data, **{"optimizer.offload": True}, **LAST), workdir)
    one, other = tiny.state(whole), tiny.state(workdir)
    for name, x in one.items():
        np.testing.assert_allclose(x, other[name], atol=1e-6, err_msg=name)


def test_dropout_resumes_exactly_and_matters(data, whole, tmp_path):
    config = tiny.config(data, **{"model.dropout": 0.1, "checkpoint.every": 3})
    train(config, tmp_path / "a")
    train(config, tiny.killed_after(tmp_path / "a", 3, tmp_path / "b"))
    tiny.assert_same_run(tmp_path / "a", tmp_path / "b")
    assert tiny.losses(tmp_path / "a")[1] != tiny.losses(whole)[1]


def test_other_config_is_refused_with_the_difference(data, whole):
    with pytest.raises(UserError, match=r"optimizer.lr: 0.003 -> 0.1"):
        train(tiny.config(data, **{"optimizer.lr": 0.1}), whole)


def test_lora_trains_adapters_only(data, whole, tmp_path):
    changes = {"model.lora_rank": 2, "init": str(whole), "tokenizer": ""}
    train(tiny.config(data, steps=2, **changes, **LAST), tmp_path / "lora")
    before, after = tiny.state(whole), tiny.state(tmp_path / "lora", 2)
    base = "['params']['layers']['attn']['q']"
    np.testing.assert_array_equal(before[base], after[base + "['w']"])
    assert np.any(after[base + "['lora_b']"])
    assert not any("['w']" in name for name in after if name.startswith("['rest']"))
    loaded = checkpoint.load_for_inference(tmp_path / "lora")
    assert np.any(np.asarray(loaded.params["layers"]["attn"]["q"]) != before[base])


def test_sigterm_saves_and_says_so(data, tmp_path):
    done = tmp_path / "done.json"  # as if the run had been shorter, once
    done.touch()

    def stop():
        wait_for(tmp_path / "checkpoints" / "2", seconds=600)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=stop)
    asking.start()
    with pytest.raises(SystemExit) as stopped:
        train(tiny.config(data, steps=100_000), tmp_path)
    asking.join()
    assert stopped.value.code == PREEMPTED
    saved = {int(p.name) for p in (tmp_path / "checkpoints").iterdir()}
    assert max(tiny.losses(tmp_path)) == max(saved)
    last = tiny.lines(tmp_path)[-1]  # what goodput goes on from
    assert last["step"] == max(saved) and last["time/train"] < last["time/run"]
    assert not done.exists()


def test_kill_while_saving_loses_nothing_that_was_saved(data, whole, tmp_path):
    """Every update saves, so a kill lands in the middle of one."""
    workdir = tmp_path / "run"
    process = tiny.command(data, workdir, devices=8)
    wait_for(workdir / "checkpoints" / "2", process)
    process.kill()
    process.wait()
    train(tiny.config(data, **LAST), workdir)
    tiny.assert_same_run(whole, workdir)


@pytest.fixture
def small_disk(tmp_path):
    """mount(megabytes) -> a folder on a disk of that size; again: the same, resized."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(megabytes, flags="nosuid"):
        options = f"{flags},size={megabytes}m"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root can mount a disk that is full soon")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


def test_full_disk_is_one_line_and_the_run_goes_on_later(data, whole, small_disk):
    workdir = small_disk(2) / "run"
    with pytest.raises(UserError, match="the disk is full") as error:
        train(tiny.config(data), workdir)
    assert "\n" not in str(error.value)
    small_disk(64, "remount")
    saved = checkpoint.Checkpoints(workdir, every=1, keep=0).latest()
    assert (saved or 0) < 6
    train(tiny.config(data, **LAST), workdir)
    tiny.assert_same_run(whole, workdir)


def test_nonfinite_loss_stops_and_keeps_the_batch(data, tmp_path):
    # The first loss is finite; the update it makes is not survivable.
    with pytest.raises(UserError, match="iteration 1 is not finite.*npz"):
        train(tiny.config(data, **{"optimizer.lr": 1e38}), tmp_path / "run")
    kept = np.load(tmp_path / "run" / "nonfinite-1-0.npz")
    assert kept["seqs/tokens"].shape == (8, 64)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch": 12}, "config.batch = 12 does not divide over 8 devices.*8 or 16"),
        ({"mesh": "fsdp=3"}, "needs a multiple of 3 devices, but there are 8"),
        ({"mesh": "tensor=8", "batch": 8}, "kv_heads of parameter .* = 4 does not"),
        ({"mesh": "context=8", "data.length": 60}, "use 56 or 64"),
        ({"microbatches": 3}, "does not divide into 3 microbatches"),
        ({"model.name": "lama:tiny"}, "did you mean llama:tiny"),
        ({"optimizer.name": "adam"}, "adamw"),
        ({"objective.name": "stf"}, "sft"),
        ({"model.vocab_size": 10}, "vocab_size"),
        ({"train": "nothing"}, "nothing"),
        ({"template": "tulip"}, "tulu"),
        ({"profile": "10"}, "'10' is not FIRST:STOP.*profile=10:13"),
    ],
)
def test_bad_values_are_explained_in_one_line(data, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        train(tiny.config(data, **changes), tmp_path / "run")
    assert "\n" not in str(error.value)


def test_unknown_key_on_the_command_line_names_the_nearest(data, tmp_path):
    process = tiny.command(data, tmp_path / "run", "--config.optimizer.lrr=1")
    assert process.wait() == 2
    error = process.stderr.read()
    assert 'Did you mean "lr"' in error and "Traceback" not in error


def test_unknown_preset_is_one_line_and_a_broken_config_shows_where(tmp_path):
    train_module = [sys.executable, "-m", "easylm.train", "--workdir", str(tmp_path)]
    run = partial(subprocess.run, cwd=tiny.ROOT, text=True, capture_output=True)
    wrong = run([*train_module, "--config=configs/sft.py:tinny"])
    assert wrong.returncode == 2
    assert wrong.stderr == "error: no preset 'tinny'; there are default\n"
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config():\n    return nothing\n")
    wrong = run([*train_module, f"--config={broken}"])
    assert "NameError: name 'nothing' is not defined" in wrong.stderr
    assert f'File "{broken}", line 2' in wrong.stderr


def wait_for(path, process=None, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process is None or process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.01)
