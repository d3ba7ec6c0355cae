"""Sweeps: what would run, under which name, what is done already, and the table."""

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from easylm import sweep
from easylm.errors import UserError, explain
from easylm.evals import results
from scripts import sweep as sweep_script
from tests import tiny
from tests.conftest import FAST

FILE = "tests/sweep_config.py"


def plan(points, tmp_path, *flags, preset=""):
    """The plan of a sweep that adds these points."""
    file = tmp_path / "config.py"
    file.write_text(
        "from configs import sft\n"
        "get_config = sft.get_config\n"
        f"def sweep_it(add):\n    for point in {points!r}:\n        add(point)\n"
    )
    return sweep.plan(f"{file}{preset}", "it", str(tmp_path / "runs"), flags)


def names(*args, **kwargs):
    return [point.name for point in plan(*args, **kwargs)]


def script(*args, **kwargs):
    one = f"--xla_force_host_platform_device_count=1 {FAST}"
    env = os.environ | {"PYTHONPATH": tiny.ROOT, "XLA_FLAGS": one}
    return subprocess.run(
        [sys.executable, "scripts/sweep.py", *map(str, args)],
        cwd=tiny.ROOT,
        env=env,
        capture_output=True,
        text=True,
        **kwargs,
    )


# Names


def test_a_name_is_what_differs(tmp_path):
    points = [
        {"optimizer.lr": lr, "seed": seed, "batch": 64}
        for lr in (0.1, 2e-5)
        for seed in (0, 1)
    ]
    wanted = ["lr=0.1,seed=0", "lr=0.1,seed=1", "lr=2e-05,seed=0", "lr=2e-05,seed=1"]
    assert names(points, tmp_path) == wanted


def test_what_a_point_does_not_set_is_the_configs_own_value(tmp_path):
    points = [{}, {"optimizer.schedule": "cosine"}, {"seed": 1}]
    wanted = ["schedule=linear,seed=0", "schedule=cosine,seed=0"]
    assert names(points, tmp_path) == [*wanted, "schedule=linear,seed=1"]


def test_keys_that_end_alike_are_named_in_full(tmp_path):
    points = [{"eval.every": 1, "log.every": 2}, {"eval.every": 3, "log.every": 2}]
    assert names(points, tmp_path) == ["every=1", "every=3"]
    points[0]["log.every"] = 5
    wanted = ["eval.every=1,log.every=5", "eval.every=3,log.every=2"]
    assert names(points, tmp_path) == wanted


def test_a_single_point_is_named_by_all_it_sets(tmp_path):
    assert names([{"batch": 8, "seed": 1}], tmp_path) == ["batch=8,seed=1"]
    assert names([{}], tmp_path) == ["default"]


def test_names_are_fit_for_files(tmp_path):
    points = [{"init": "/my models/Llama 3.2"}, {"init": "b" * 99}, {"init": ""}]
    wanted = ["init=my-models-Llama-3.2", f"init={'b' * 40}", "init="]
    assert names(points, tmp_path) == wanted


def test_two_points_of_one_name_are_an_error(tmp_path):
    with pytest.raises(UserError, match="points 1 and 3 are both named seed=0"):
        plan([{"seed": 0}, {"seed": 1}, {"seed": 0}], tmp_path)
    with pytest.raises(UserError, match="both named init=a-b.*letters or digits"):
        plan([{"init": "a/b"}, {"init": "a b"}], tmp_path)


# Commands


def test_a_command_read_by_a_shell_is_the_command(tmp_path):
    points = [
        {"init": "it's $HOME/*; #", "log.tensorboard": False, "steps": 3},
        {"sample.prompts": ("What is 'x y'?",), "optimizer.lr": 1, "steps": None},
    ]
    path = "--config.data.mixture.main.path=/my data/*.parquet"
    found = plan(points, tmp_path, path, preset=":default")
    lines = sweep.commands(found).splitlines()
    assert [shlex.split(line) for line in lines] == [p.command for p in found]
    command = found[0].command
    assert command[:3] == ["python", "-m", "easylm.train"]
    assert command[4] == f"{tmp_path / 'config.py'}:default" and path in command
    assert command[6] == found[0].workdir
    assert "--config.init=it's $HOME/*; #" in command
    assert "--config.log.tensorboard=False" in command
    assert """--config.sample.prompts=("What is 'x y'?",)""" in found[1].command
    assert "--config.optimizer.lr=1.0" in found[1].command
    assert not any(word.startswith("--config.steps") for word in found[1].command)


@pytest.mark.parametrize(
    "points, message",
    [
        ([{}, {"optimizer.lrr": 1}], "point 2: .* 'optimizer.lrr'.* mean optimizer.lr"),
        ([{"lr": 1}], "point 1: .* 'lr'; did you mean optimizer.lr"),
        ([{"optimizer": {"lr": 1.0}}], "no value 'optimizer'; did you mean optimizer"),
        ([{"optimizer.lr": "0.1"}], "optimizer.lr = '0.1' is .* str, .* wants float"),
        ([{"seed": 1.5}], "seed = 1.5 is of type float, the config wants int"),
        ([{"seed": True}], "point 1: .*seed=True"),
        ([{"seed": 1}, {"seed": None}], "point 2 has a value, such as None"),
        ([3], "add\\(\\) was given 3; give a dict"),
        ([], "sweep_it of .* has no points"),
    ],
)
def test_a_wrong_point_is_explained_before_anything_runs(tmp_path, points, message):
    with pytest.raises(UserError, match=message) as error:
        plan(points, tmp_path)
    assert "\n" not in str(error.value)


def test_a_flag_for_every_run_may_not_be_what_the_sweep_sets(tmp_path):
    with pytest.raises(UserError, match="sets seed itself; leave out --config.seed"):
        plan([{"seed": 1}], tmp_path, "--config.seed=2")
    with pytest.raises(UserError, match='Did you mean "lr"'):
        plan([{"seed": 1}], tmp_path, "--config.optimizer.lrr=2")


def test_what_a_user_can_fix_is_one_line(tmp_path, capsys):
    def said(*args):
        with pytest.raises(SystemExit) as stopped:
            explain(sweep_script.main, [*map(str, args)])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1, error
        return error

    at = ["--workdir", tmp_path]
    assert "no config file a.py" in said("--config=a.py", "--sweep=lr", *at)
    assert "has no sweeps" in said("--config", "configs/common.py", "--sweep=lr", *at)
    assert "did you mean lr?" in said("--config", FILE, "--sweep=lrr", *at)
    assert "give --workdir" in said("--config", FILE, "--sweep=lr")
    table = ["--collect", "--out", "table.xls"]
    assert ".csv, .md, .json" in said("--config", FILE, "--sweep=lr", *at, *table)
    sweep_script.main(["--config", FILE])
    assert "lr               Learning rates" in capsys.readouterr().out
    wrong = script("--config=a.py", "--sweep=lr", *at)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1, wrong.stderr


# Finished or not


def leave(point, config, *lines, done=True):
    """What a run leaves behind."""
    folder = Path(point.workdir)
    (folder / "checkpoints" / "2").mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "run.json").write_text(config.to_json_best_effort())
    (folder / "metrics.jsonl").write_text(text)
    if done:
        (folder / "done.json").write_text('{"steps": 2}')


@pytest.fixture
def four(tmp_path):
    """(plan(), its configs) of the sweep in tests/sweep_config.py."""
    again = lambda *flags: sweep.plan(FILE, "lr", str(tmp_path / "runs"), flags)
    configs = [
        tiny.config("", 2, **{"optimizer.lr": lr, "seed": s, "optimizer.decay": 0.5})
        for lr in (1e-3, 2e-5)
        for s in (0, 1)
    ]
    return again, configs


def test_finished_runs_are_marked_and_interrupted_ones_are_not(four):
    again, configs = four
    points = again()
    leave(points[0], configs[0])
    leave(points[1], configs[1], done=False)
    assert [point.done for point in again()] == [True, False, False, False]
    first, *others = sweep.commands(again()).splitlines()
    assert first.startswith("# finished: python -m ")
    assert all(line.startswith("python -m ") for line in others)


def test_another_run_in_the_folder_is_not_taken_for_this_one(four):
    again, configs = four
    leave(again()[0], configs[0])
    with pytest.raises(UserError, match="another config.*\n  batch: 8 -> 16"):
        again("--config.batch=16")
    assert again("--config.log.every=3")[0].done  # that changes nothing
    shutil.rmtree(Path(again()[0].workdir) / "checkpoints")  # to free the disk
    with pytest.raises(UserError, match="another config"):
        again("--config.batch=16")


def test_the_last_values_of_finished_runs_are_collected(four):
    again, configs = four
    points = again()
    leave(
        points[0],
        configs[0],
        {"step": 1, "time": 1.0, "train/loss": 3.0, "eval/loss": 9.0},
        {"step": 2, "time": 2.0, "samples/0": "one two"},
        {"step": 2, "time": 2.0, "train/loss": 2.0, "eval/loss": "NaN"},
    )
    leave(points[1], configs[1], {"step": 1, "train/loss": 7.0}, done=False)
    first, *others = sweep.collect(again())
    assert first.values == {"lr": 1e-3, "seed": 0}
    assert first.metrics == {
        "train/loss": 2.0,
        "eval/loss": pytest.approx(float("nan"), nan_ok=True),
    }
    assert [run.metrics for run in others] == [None] * 3


# Running, with commands that stand for runs


def point(name, code, done=False):
    return sweep.Point(name, {}, "", ["python", "-c", code], done)


def test_the_first_failure_stops_with_its_exit_code(tmp_path, capfd):
    points = [
        point("a", "raise SystemExit(1)", done=True),
        point("b", f"open({str(tmp_path / 'b')!r}, 'w'); print('hello')"),
        point("c", "raise SystemExit(3)"),
        point("d", f"open({str(tmp_path / 'd')!r}, 'w')"),
    ]
    assert sweep.run(points) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    out, err = capfd.readouterr()
    assert err == "error: c ended with exit code 3; it says why above\n"
    assert out.splitlines()[1] == "hello"
    assert out.endswith("1 ran, 1 skipped (finished before), 2 left\n")


def test_a_run_that_was_stopped_stops_the_sweep_with_75(capfd):
    assert sweep.run([point("a", "raise SystemExit(75)"), point("b", "")]) == 75
    assert capfd.readouterr().err == "stopped in a; the same command goes on\n"


def test_a_run_that_was_killed_has_the_exit_code_a_shell_gives(capfd):
    assert sweep.run([point("a", "import os; os.kill(os.getpid(), 9)")]) == 137


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("both", [False, True])
def test_a_signal_is_passed_on_and_does_not_kill(number, both, tmp_path, capfd):
    """`kill` asks the sweep alone, a terminal asks the sweep and its run."""
    ready, whole = tmp_path / "ready", tmp_path / "whole"
    waits = f"""if True:
        import os, pathlib, time
        from easylm.training.guard import Stop
        with Stop() as stop:
            pathlib.Path({str(ready)!r}).write_text(str(os.getpid()))
            while not stop.requested():
                time.sleep(0.01)
            time.sleep(0.2)  # until the other signal is there
        pathlib.Path({str(whole)!r}).touch()
        raise SystemExit(75)"""

    def ask():
        while not (ready.exists() and ready.read_text()):
            time.sleep(0.02)
        if both:
            os.kill(int(ready.read_text()), number)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    asking = threading.Thread(target=ask)
    asking.start()
    assert sweep.run([point("a", waits), point("b", "")]) == 75
    asking.join()
    assert whole.exists() and signal.getsignal(number) is before
    assert "0 ran, 0 skipped (finished before), 2 left" in capfd.readouterr().out


# Tables


def run(beta, seed, **metrics):
    found = {name.replace("_", "/", 1): v for name, v in metrics.items()} or None
    return results.Run(f"b={beta},s={seed}", {"beta": beta, "seed": seed}, found)


RUNS = [
    run(0.1, 0, train_loss=9.0, eval_loss=1.0, eval_accuracy=0.5),
    run(0.5, 0, train_loss=9.0, eval_loss=4.0, eval_accuracy=0.25),
    run(0.1, 1, train_loss=9.0, eval_loss=2.0, eval_accuracy=0.5),
    run(0.5, 1),
    run(2.0, 0),
]
TABLE = """\
beta  n  unfinished  eval/loss   eval/accuracy
0.1   2  0           1.5 [1, 2]  0.5 [0.5, 0.5]
0.5   1  1           4           0.25
2     0  1           -           -
not finished, left out: b=0.5,s=1 b=2.0,s=0"""


def test_seeds_are_one_row_and_unfinished_runs_are_named():
    assert results.show(RUNS, results.summarize(RUNS)) == TABLE


def test_metrics_are_eval_else_loss_else_those_asked_for():
    only = [run(0.1, 0, train_loss=9.0, perf_mfu=1.0)]
    assert list(results.summarize(only)[0].cells) == ["train/loss"]
    assert list(results.summarize(only, ["perf/mfu"])[0].cells) == ["perf/mfu"]
    with pytest.raises(UserError, match="no run has eval/los; there are train/loss"):
        results.summarize(RUNS, ["eval/los"])
    with pytest.raises(UserError, match="none of the 1 runs is finished"):
        results.summarize(RUNS[-1:])


def test_a_mean_is_over_all_seeds_or_not_there():
    some = [run(1, 0, eval_a=1.0, eval_b=1.0), run(1, 1, eval_a=3.0)]
    cells = results.summarize(some)[0].cells
    assert cells["eval/a"].mean == 2 and cells["eval/b"] is None


def test_a_seed_that_diverged_shows():
    some = [run(1, 0, eval_a=1.0), run(1, 1, eval_a=float("nan"))]
    rows = results.summarize(some)
    assert results.show(some, rows).splitlines()[1].split() == ["1", "2", "nan"]


def test_tables_are_written_as_their_name_says(tmp_path):
    rows = results.summarize(RUNS)
    texts = {}
    for end in ("csv", "md", "json"):
        path = tmp_path / "new" / f"table.{end}"
        results.write(str(path), RUNS, rows)
        texts[end] = path.read_text()
    lines = list(csv.DictReader(texts["csv"].splitlines()))
    assert lines[0]["eval/loss"] == "1.5" and lines[0]["eval/loss high"] == "2.0"
    assert lines[1]["unfinished"] == "1" and lines[2]["eval/loss"] == ""
    content = json.loads(texts["json"])
    assert content["unfinished"] == ["b=0.5,s=1", "b=2.0,s=0"]
    assert content["rows"][0]["eval/loss low"] == 1.0
    line = texts["md"].splitlines()[2]
    assert line == "| 0.1 | 2 | 0 | 1.5 [1, 2] | 0.5 [0.5, 0.5] |"


# The whole thing


def test_a_sweep_runs_is_collected_and_knows_that_it_is_done(tmp_path):
    data = tiny.write_data(tmp_path)
    config, workdir = f"{FILE}:{data}", tmp_path / "runs"
    out = tmp_path / "table.json"
    at = ["--config", config, "--sweep", "seeds", "--workdir", workdir]
    done = script(*at, "--run", "--collect", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "2 ran, 0 skipped" in done.stdout
    [row] = json.loads(out.read_text())["rows"]
    losses = sorted(tiny.losses(workdir / f"seed={seed}")[2] for seed in (0, 1))
    assert [row["train/loss low"], row["train/loss high"]] == losses
    assert row["n"] == 2 and losses[0] < row["train/loss"] < losses[1]
    points = sweep.plan(config, "seeds", str(workdir))
    assert [point.done for point in points] == [True, True]
    assert sweep.run(points) == 0
