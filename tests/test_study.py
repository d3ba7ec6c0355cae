"""The study from its one command to its page, with two steps of everything."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from easylm.study import pipeline, work
from easylm.study.names import PPO
from tests import tiny
from tests.conftest import FAST


def study(workdir, *flags):
    env = os.environ | {"XLA_FLAGS": FAST, "PYTHONPATH": tiny.ROOT}
    command = [sys.executable, "scripts/study.py", "--workdir", workdir, *flags]
    return subprocess.run(
        command, cwd=tiny.ROOT, env=env, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("study") / "run"
    return workdir, study(workdir, "--scale", "smoke", "--jobs", "1")


def test_every_stage_runs_and_the_page_shows_what_came_out(first):
    workdir, run = first
    assert run.returncode == 0, run.stderr[-2000:]
    stages = pipeline.stages(pipeline.SMOKE, str(workdir))
    assert f"[{len(stages)}/{len(stages)}]" in run.stdout
    assert all(stage.done() for stage in stages)
    assert set(work.spent(workdir)) == {stage.name for stage in stages}
    page = (workdir / "report.html").read_text()
    document = json.loads((workdir / "results.json").read_text())
    assert document["lead"] in run.stdout
    for section in document["sections"]:
        assert section["title"] in page
    for name in ("DPO, fine-grained ratings", "GRPO, what can be verified", "PPO"):
        assert name in page
    picture = (workdir / "gold.svg").read_text()
    assert "best of N" in picture and "PPO" in picture


def test_a_finished_study_is_only_shown_again(first):
    workdir, _ = first
    before = (workdir / "results.json").read_text()
    again = study(workdir, "--scale", "smoke")
    assert "stages are done already" in again.stdout
    assert not re.search(r"^\[", again.stdout, re.M)
    assert (workdir / "results.json").read_text() == before


def test_a_report_needs_no_more_of_a_seed_than_what_was_measured(first, tmp_path):
    workdir, _ = first
    for name in ("seconds.jsonl", "evals", f"{PPO}/metrics.jsonl"):
        there = shutil.copytree if (workdir / name).is_dir() else shutil.copy
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        there(workdir / name, tmp_path / name)
    run = study(tmp_path, "--scale", "smoke", "--report")
    assert run.returncode == 0, run.stderr
    made, here = ((root / "results.json").read_text() for root in (workdir, tmp_path))
    assert made.replace(str(workdir), str(tmp_path)) == here


def test_what_a_user_can_fix_is_one_line(tmp_path):
    wrong = study(tmp_path, "--scale", "huge")
    assert wrong.returncode == 2 and "choose from" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    nothing = study(tmp_path, "--report")
    assert "no seed whose evaluations are done" in nothing.stderr
    assert nothing.returncode == 2
