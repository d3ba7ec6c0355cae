"""What a run writes down and shows: files, averages, the progress line, the summary."""

import io
import json
import math
import os
import pathlib
import pty
import re
import termios

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from easylm.errors import UserError
from easylm.losses.masked import Mean
from easylm.training import hosts, metrics, progress
from easylm.training.goodput import Goodput

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "metrics.md"


def write_steps(workdir, steps, **kwargs):
    writer = metrics.make(workdir, tensorboard=False, **kwargs)
    for step in steps:
        writer.scalars(step, {"train/loss": 1 / step})
    writer.close()


def read(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def steps(workdir):
    return [record["step"] for record in read(workdir)]


def events(workdir):
    """Records are: length u64, crc u32, data, crc u32."""
    for file in sorted((workdir / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            yield Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


def test_each_call_is_one_json_object(tmp_path):
    writer = metrics.make(tmp_path, tensorboard=False)
    writer.scalars(3, {"train/loss": jnp.float32(0.5), "perf/mfu": 0.25})
    writer.text(3, "sample/0", "two\nlines ☃")
    writer.close()
    first, second = read(tmp_path)
    assert first.pop("time") > 1.7e9
    assert first == {"step": 3, "train/loss": 0.5, "perf/mfu": 0.25}
    assert second["sample/0"] == "two\nlines ☃"


def test_a_line_is_on_disk_before_close(tmp_path):
    writer = metrics.make(tmp_path, tensorboard=False)
    writer.scalars(1, {"train/loss": 1.0})
    assert steps(tmp_path) == [1]
    writer.close()


def test_not_finite_numbers_are_strict_json_that_float_reads(tmp_path):
    values = {"a": math.nan, "b": math.inf, "c": -math.inf}
    writer = metrics.make(tmp_path, tensorboard=False)
    writer.scalars(1, values)
    writer.close()
    (record,) = read(tmp_path)
    assert [repr(float(record[name])) for name in values] == ["nan", "inf", "-inf"]


def test_resume_drops_what_the_killed_run_logged_after_its_checkpoint(tmp_path):
    write_steps(tmp_path, [10, 20, 30])
    write_steps(tmp_path, [30, 40], resume_step=20)
    assert steps(tmp_path) == [10, 20, 30, 40]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_half_written_last_line_is_dropped(tmp_path):
    write_steps(tmp_path, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    write_steps(tmp_path, [3])
    assert steps(tmp_path) == [1, 2, 3]


def test_a_last_line_without_its_newline_is_kept(tmp_path):
    write_steps(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    write_steps(tmp_path, [3])
    assert steps(tmp_path) == [1, 2, 3]


def test_a_new_start_from_nothing_leaves_nothing(tmp_path):
    write_steps(tmp_path, [1, 2])
    write_steps(tmp_path, [1], resume_step=-1)
    assert steps(tmp_path) == [1]


def test_what_has_been_written_reads_back(tmp_path):
    assert metrics.read(tmp_path) == []
    write_steps(tmp_path, [1, 2])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "tra')
    assert [line["train/loss"] for line in metrics.read(tmp_path)] == [1.0, 0.5]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    write_steps(tmp_path, [1])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl line 2 .* delete that line"):
        write_steps(tmp_path, [4])


def test_a_full_disk_is_a_one_line_error():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    log = metrics._FileLog(pathlib.Path("/dev/full"), b"", [])
    with pytest.raises(UserError, match=r"cannot write /dev/full: .*No space left"):
        log.write(b"{}\n")


def test_an_object_store_gets_whole_files(bucket):
    for resume_step, new in [(-1, [1, 2]), (1, [2, 3])]:
        writer = metrics.make(bucket, config={"seed": 0}, resume_step=resume_step)
        for step in new:
            writer.scalars(step, {"train/loss": 1.0})
            writer.records(step, [{"reward": step / 2}])
        writer.close()
    assert steps(bucket) == [1, 2, 3]
    said = (bucket / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["reward"] for line in said] == [0.5, 1.0, 1.5]
    tags = {value.tag for event in events(bucket) for value in event.summary.value}
    assert "train/loss" in tags


def test_an_object_store_gets_the_lines_when_they_are_due(bucket, monkeypatch):
    monkeypatch.setattr(metrics, "_REWRITE_SECONDS", 0)
    writer = metrics.make(bucket)
    writer.scalars(1, {"train/loss": 1.0})
    assert steps(bucket) == [1]
    assert list((bucket / "tensorboard").iterdir())
    writer.close()


def test_tensorboard_events_read_back(tmp_path):
    writer = metrics.make(tmp_path, config={"seed": 7})
    writer.scalars(5, {"train/loss": 0.25})
    writer.text(5, "sample/0", "hello")
    writer.close()
    found = {v.tag: (e.step, v) for e in events(tmp_path) for v in e.summary.value}
    step, value = found["train/loss"]
    assert (step, value.simple_value) == (5, 0.25)
    assert b"hello" in found["sample/0/text_summary"][1].tensor.string_val[0]
    assert b'"seed": 7' in found["config/text_summary"][1].tensor.string_val[0]


def test_tensorboard_hides_the_steps_after_the_checkpoint(tmp_path):
    metrics.make(tmp_path).close()
    metrics.make(tmp_path, resume_step=20).close()
    starts = [e.step for e in events(tmp_path) if e.HasField("session_log")]
    assert starts == [21]


def test_wandb_without_wandb_says_what_to_install(tmp_path):
    try:
        import wandb  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r'pip install "easylm\[wandb\]"'):
            metrics.make(tmp_path, wandb={"project": "p"})
    else:
        pytest.skip("wandb is installed")


def test_wandb_resumes_the_run_of_the_workdir(tmp_path):
    pytest.importorskip("wandb")
    ids = []
    for step in (1, 2):
        writer = metrics.make(
            tmp_path, tensorboard=False, wandb={"project": "p", "mode": "offline"}
        )
        writer.scalars(step, {"train/loss": 1.0})
        writer.text(step, "sample/0", "<b>")
        writer.close()
        ids.append((tmp_path / "wandb_id.txt").read_text())
    assert ids[0] == ids[1]
    runs = [p.name for p in (tmp_path / "wandb").iterdir() if "offline" in p.name]
    assert all(name.endswith(ids[0]) for name in runs)
    assert runs


def test_averages_are_weighted_by_count():
    window = [
        {"loss": Mean(jnp.float32(6.0), jnp.float32(2.0))},  # a mean of 3
        {"loss": Mean(jnp.float32(8.0), jnp.float32(8.0)), "z": Mean(3.0, 2.0)},  # of 1
    ]
    assert metrics.accumulate(window, "train/") == {"train/loss": 1.4, "train/z": 1.5}


def test_nothing_counted_is_zero_like_mean_value():
    assert metrics.accumulate([{"loss": Mean(0.0, 0.0)}]) == {"loss": 0.0}


def test_progress_in_a_log_file_is_plain_lines():
    stream = io.StringIO()
    bar = progress.Progress(2000, 700, name="sft", stream=stream)
    bar.log(700, {})
    bar.advance(739)
    values = {"train/loss": 1.2341, "train/learning_rate": 1.8e-5, "eval/loss": 2.0}
    bar.log(740, values | {"perf/tokens_per_second": 12345, "perf/mfu": 0.4123})
    bar.print("a sample")
    bar.close()
    first, second, third = stream.getvalue().splitlines()
    assert re.fullmatch(r"sft 700/2000  35%  0\.\ds left \?", first)
    assert re.fullmatch(
        r"sft 740/2000  37%  0\.\ds left \d+\.\ds  loss 1\.234  lr 1\.8e-05  "
        r"12\.3k tok/s  MFU 41\.2%",
        second,
    )
    assert third == "a sample"


def shown_on_a_terminal(columns):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    with open(theirs, "w") as terminal:
        bar = progress.Progress(2000, 700, name="sft", stream=terminal)
        bar.advance(740)
        bar.log(740, {"train/loss": 1.2341})
        bar.print("a sample")
        bar.close()
        shown = os.read(ours, 100_000).decode()
    os.close(ours)
    return shown


def test_progress_on_a_terminal_is_a_bar():
    shown = shown_on_a_terminal(columns=80)
    bar = r"sft  37%\|.*\| 740/2000 \[00:00<\S+\]  loss 1\.234"
    assert any(re.fullmatch(bar, line.strip()) for line in shown.split("\r"))
    assert "\ra sample\r\n" in shown


def test_progress_on_a_terminal_without_width_is_plain_lines():
    assert shown_on_a_terminal(columns=0).startswith("sft 740/2000  37%  0.")


def test_phases_add_up_and_the_inner_one_counts():
    now = [0.0]
    phases = progress.Phases(clock=lambda: now[0])
    now[0] += 1  # outside of any phase
    with phases("train"):
        now[0] += 10
        with phases("data_wait"):
            now[0] += 2
        now[0] += 3
    with pytest.raises(KeyError), phases("save"):
        now[0] += 4
        raise KeyError
    assert phases.seconds() == {"other": 1, "train": 13, "data_wait": 2, "save": 4}
    assert phases.metrics()["time/total"] == 20


def test_what_is_compiled_or_evaluated_on_the_way_is_no_training():
    now = [0.0]
    phases = progress.Phases(clock=lambda: now[0])
    for phase in ("compile", "evaluate", "train"):
        with phases(phase):
            now[0] += 1
            with phases("rollout"):
                now[0] += 10
    seconds = phases.seconds()
    del seconds["other"]
    assert seconds == {"compile": 11, "evaluate": 11, "rollout": 10, "train": 1}


def test_rates_match_hand_numbers():
    values = {
        "steps": 4, "seconds": 2.0, "waited": 0.5, "tokens": 1000, "scored": 600,
        "items": {"pairs": 8}, "flops": 3e12, "peak": 6e12,
    }  # fmt: skip
    assert progress.rates(**values) == {
        "perf/step_time": 0.5,
        "perf/data_wait": 0.125,
        "perf/tokens_per_second": 500,
        "perf/scored_tokens_per_second": 300,
        "perf/pairs_per_second": 4,
        "perf/mfu": 0.25,
    }
    assert "perf/mfu" not in progress.rates(**(values | {"peak": None}))


def test_peak_memory_of_this_process_is_plausible():
    size, where = progress.peak_memory()
    assert where in ("device", "process")
    assert 2**20 < size < 2**45


def summary(**changes):
    given = {
        "seconds": {"compile": 10.0, "train": 60.0, "data_wait": 20.0, "save": 10.0},
        "steps": 2000,
        "tokens": 800_000,
        "flops": 1.6e12,
        "peak": 4e10,
        "loss": 1.23456,
        "memory": (3 * 2**29, "process"),
        "goodput": {"perf/goodput": 0.6, "perf/goodput_run": 0.6, "time/run": 100.1},
    }
    return progress.summary(**(given | changes)).splitlines()


def test_the_summary_is_aligned_and_adds_up():
    assert summary() == [
        "steps              2,000",
        "tokens            800.0k",
        "wall time          01:40",
        "  train            01:00    60.0%",
        "  data wait        20.0s    20.0%",
        "  compile          10.0s    10.0%",
        "  save             10.0s    10.0%",
        "goodput            60.0%",
        "tokens/s           10.0k",
        "MFU                50.0%",
        "final loss        1.2346",
        "peak memory     1.50 GiB  process",
    ]


def test_the_summary_of_a_resumed_run_counts_all_of_it():
    whole = {"perf/goodput": 0.6, "perf/goodput_run": 0.31, "time/run": 4000}
    line = "goodput            31.0%  of 1:06:40 with restarts; 60.0% since the last"
    assert line in summary(goodput=whole)
    assert not any("goodput" in line for line in summary(steps=0, goodput=whole))


def test_what_is_logged_here_is_documented():
    documented = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert len(documented) == len(set(documented))
    logged = progress.rates(
        steps=1,
        seconds=1,
        waited=0,
        tokens=1,
        scored=1,
        items={"pairs": 1},
        flops=1,
        peak=1,
    )
    phases = ("compile", "data_wait", "train", "evaluate", "sample", "save", "profile")
    logged = {*logged, *progress.Phases().metrics(), *(f"time/{p}" for p in phases)}
    logged |= {f"memory/{kind}" for kind in ("device", "device_peak", "process_peak")}
    logged |= hosts.waits(np.zeros((2, 2)), updates=1).keys()
    logged |= Goodput(progress.Phases(), [], 0).metrics().keys()
    assert logged | set(progress._SHOWN) <= set(documented)


ONLINE = ("estimates", "online", "policy_gradient", "online_preference", "best_of")


def test_what_online_objectives_log_is_documented_and_nothing_else():
    page = PAGE.read_text()
    part = page[page.index("## Online") : page.index("## Evaluation")]
    documented = re.findall(r"^\| `(?:train/)?([^`<]+)` \|", part, re.MULTILINE)
    groups = "answers|objective|policy|ptx|rewards|rollout|value"
    package = pathlib.Path(metrics.__file__).parents[1]
    files = [*(package / "rollout").glob("*.py")]
    files += [package / "objectives" / f"{name}.py" for name in ONLINE]
    source = "".join(file.read_text() for file in files)
    logged = re.findall(rf'"((?:{groups})/\w+)"(?=:|\] =)', source)
    assert len(logged) > 20 and set(logged) == set(documented)
