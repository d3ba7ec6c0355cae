"""The stages of the study: in an order that works, made once, and what they say."""

import json
import re
import runpy
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

from easylm.errors import UserError
from easylm.evals import world as judge
from easylm.simulator import world
from easylm.study import (
    analysis,
    claims,
    markdown,
    names,
    picks,
    pipeline,
    report,
    work,
)
from easylm.study.claims import verdict
from easylm.study.estimates import difference, estimate, marks
from easylm.study.pipeline import MINI, Stage


def flags(command):
    words = command.split()
    pairs = (
        word.removeprefix("--config.").split("=", 1) for word in words if "=" in word
    )
    return words[words.index("--config") + 1].split(":")[1], dict(pairs)


@pytest.mark.parametrize("scale", pipeline.SCALES)
def test_every_stage_comes_after_what_it_reads(tmp_path, scale):
    made, root = set(), str(tmp_path)
    for stage in pipeline.stages(pipeline.SCALES[scale], root):
        assert stage.needs <= made, stage.name
        assert stage.name not in made
        made.add(stage.name)


def test_a_run_needs_what_its_config_reads(tmp_path):
    stages = {stage.name: stage for stage in pipeline.stages(MINI, str(tmp_path))}
    ppo = stages["ppo-medium-fine_grained-general"]
    reads = {"sft-medium", "judge-medium-fine_grained"}
    assert ppo.needs == reads | {"data/prompts-general.jsonl", "data/prompts-dev.jsonl"}
    preset, changes = flags(ppo.command)
    assert preset == "ppo" and changes["world.judge"] == "medium-fine_grained"


def test_the_commands_can_be_seen_before_anything_runs(capsys, tmp_path):
    main = runpy.run_path("scripts/study.py")["main"]
    main(["--workdir", str(tmp_path), "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    runs = [s for s in pipeline.stages(MINI, str(tmp_path)) if s.command]
    assert lines == [stage.command for stage in runs] and not list(tmp_path.iterdir())
    main(["--workdir", "ROOT", "--scale", "full", "--seeds", "2", "4", "--dry-run"])
    roots = re.findall(r"--workdir ROOT/(seed=\d)/", capsys.readouterr().out)
    assert set(roots) == {"seed=2", "seed=4"}
    main(["--workdir", "ROOT", "--scale", "paper", "--dry-run"])
    assert "configs/study/paper.py:dpo" in capsys.readouterr().out
    with pytest.raises(UserError, match="add --dry-run"):
        main(["--workdir", "ROOT", "--scale", "paper"])


def chain(root):
    """Three stages of which the second fails once, and the third needs the second."""

    def make(name):
        path = Path(root, name)
        if name == "b" and not Path(root, "tried").exists():
            Path(root, "tried").touch()
            raise RuntimeError("not today")
        print("made", name)
        path.touch()

    needs = {"a": (), "b": (), "c": ("b",)}
    return [
        Stage(n, 1, partial(make, n), Path(root, n).exists, frozenset(needs[n]))
        for n in needs
    ]


def test_what_is_done_is_not_made_again_and_a_failure_says_where_to_look(
    tmp_path, capsys
):
    root, ended = str(tmp_path), []
    plans = {root: partial(chain, root)}
    with pytest.raises(UserError, match=r"stage b did not end; .*log/b.txt says why"):
        work.go(plans, 1, ended.append)
    assert "not today" in (tmp_path / "log/b.txt").read_text()
    assert (tmp_path / "a").exists() and not (tmp_path / "c").exists() and not ended
    work.go(plans, 2, ended.append)
    assert (tmp_path / "c").exists() and ended == [root]
    said = capsys.readouterr().out
    assert "1 of 3 stages are done already" in said and "[ 3/3] c" in said
    assert "made c" not in said
    assert set(work.spent(root)) == {"a", "b", "c"}
    work.go(plans, 2, ended.append)
    assert ended == [root, root]


def test_the_time_left_follows_the_pace(monkeypatch):
    clock = iter([0, 0, 10, 30])
    monkeypatch.setattr(work.time, "monotonic", lambda: next(clock))
    slow, fast = Stage("a", 5, None, None), Stage("b", 10, None, None)
    told = work._Clock([slow, fast], jobs=1)
    assert str(told) == "about 15 s left"  # as the weights say
    told.done(slow)
    assert str(told) == "about 20 s left"  # at half that speed
    told.done(fast)
    assert str(told) == "about 0 s left"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """As if policies had run that are right with some probability."""
    folder = tmp_path_factory.mktemp("study")
    row = {"stage": "pretrain-medium", "seconds": 1.0, "device": "1 x abacus"}
    (folder / "seconds.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "evals").mkdir()
    rows = judge.read("tfds:world_prompts:test")
    good = {
        task.prompt: (task.good[0], task.fair[-1])
        for family in world.FAMILIES
        for task in world.tasks(family, "test", 100)
    }
    rng = np.random.default_rng(0)
    reference = [good[row["prompt"]][1] for row in rows]
    rates = {"pretrain-medium": 0, "sft-medium": 0.4, "dpo-web": 0.4, "grpo": 0.8}
    for name, rate in rates.items():
        texts = [good[row["prompt"]][int(rng.random() > rate)] for row in rows]
        observed = judge.observe(rows, texts, reference)
        one = {"summary": judge.summary(observed), "observed": observed}
        (folder / f"evals/{name}.json").write_text(json.dumps(one | {"texts": texts}))
    golds = rng.random((6, 16)).tolist()
    for size, right in (("medium", [1.0] * 9), ("small", [1.0, 0.0, 0.5] * 3)):
        rewards = [[-abs(g - 0.7) for g in row] for row in golds]  # hates the best
        picks = {"rewards": rewards, "golds": golds, "fact": [*range(6)]}
        one = {"right": {"marks": right, "fact": [*range(9)]}, "picks": picks}
        path = folder / f"evals/judge-{size}-fine_grained.json"
        path.write_text(json.dumps(one))
    return folder


def observed(root, name):
    return names.observed([json.loads((root / f"evals/{name}.json").read_text())])


@pytest.fixture(scope="module")
def marked(root):
    """(name) -> the marks of a policy."""
    return cache(lambda name: marks(observed(root, name)))


def width(found, name="average"):
    found = estimate(found, name)
    return found["high"] - found["low"]


def test_estimates_hold_the_mean_and_are_wider_for_fewer_prompts(root, marked):
    [one], found = observed(root, "sft-medium"), marked("sft-medium")
    for name, value in judge.summary(one).items():
        cell = estimate(found, name)
        assert cell["low"] <= value == cell["mean"] <= cell["high"]
    few = {
        family: {name: values[:20] for name, values in columns.items()}
        for family, columns in one.items()
    }
    assert width(marks([few])) > 1.3 * width(found)


def test_prompts_on_the_same_fact_are_no_news(root, marked):
    [one] = observed(root, "sft-medium")
    more = {
        family: {name: np.repeat(values, 4) for name, values in columns.items()}
        for family, columns in one.items()
    }
    found = width(marked("sft-medium"), "factuality")
    assert width(marks([more]), "factuality") == found
    for columns in more.values():
        columns["fact"] = np.arange(len(columns["fact"]))
    assert width(marks([more]), "factuality") < 0.6 * found


def test_seeds_that_differ_widen_the_interval(root):
    good, bad = observed(root, "grpo"), observed(root, "pretrain-medium")
    assert width(marks(good + bad)) > 3 * width(marks(good * 2))


def test_differences_are_of_the_same_prompts(marked):
    good, start, same = map(marked, ("grpo", "sft-medium", "dpo-web"))
    assert difference(good, good) == {"mean": 0.0, "low": 0.0, "high": 0.0}
    gap = difference(good, start)
    assert gap["low"] > 0.1 and verdict(gap) == "agrees"
    assert verdict(difference(start, good)) == "disagrees"
    assert verdict(difference(same, start)) == "cannot tell"


def test_the_report_says_what_was_found(root, marked):
    document = analysis.document([str(root)], MINI, "make study")
    page, text = report.html(document), markdown.markdown(document)
    best = marked("grpo").mean["average"]
    assert f"{100 * best:.1f}" in page and f"{100 * best:.1f}" in text
    assert f"GRPO {100 * best:.1f}" in document["lead"]
    rows = document["sections"][0]["blocks"][0]["rows"]
    verdicts = {row["claim"]: row["verdict"] for row in rows}
    assert verdicts["Rewards that can be verified raise reasoning."] == "agrees"
    assert "PPO is better than DPO on the same data." not in verdicts  # not run
    assert verdicts["Larger reward models judge better."] == "agrees"
    assert "Optimised further, a reward model's pick gets worse." in verdicts


def test_claims_name_what_is_run():
    full = {stage.name for stage in pipeline.stages(pipeline.FULL, "root")} | {
        "pretrain-medium"
    }
    for claim in claims.CLAIMS:
        assert claim.weights.keys() <= full, claim.text
        assert abs(sum(claim.weights.values())) < 1e-9


def test_several_reward_models_pick_by_the_least_of_them():
    golds = [[0.0, 1.0, 0.5, 0.2]]
    run = lambda *rewards: {"picks": {"rewards": [rewards], "golds": golds}}
    runs = [run(3.0, 2.0, 1.0, 0.0), run(0.0, 3.0, 2.0, 1.0)]
    assert picks.best_of(runs[0], 4) == [0.0]  # what only one of them likes
    assert picks.ensemble(runs, "min", 4) == [1.0]
    np.testing.assert_allclose(picks.best_of(runs[0], 1), np.mean(golds))
