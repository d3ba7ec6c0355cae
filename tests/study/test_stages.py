"""The stages of the study: in an order that works, made once, and what they say."""

import json
import runpy

import numpy as np
import pytest

from configs.study import world as presets
from easylm.errors import UserError
from easylm.evals import world as judge
from easylm.simulator import world
from easylm.study import analysis, markdown, pipeline, report
from easylm.study.claims import verdict
from easylm.study.estimates import difference, estimate
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
        if stage.command:
            preset, changes = flags(stage.command)
            config = presets.get_config(preset)
            for key in changes.keys() & {"seed", "objective.beta", "objective.kl_coef"}:
                changes[key] = json.loads(changes[key])
            config.update_from_flattened_dict(changes)
            terms = config.get("reward", {"terms": {}})["terms"]
            reads = [config.init, config.data.mixture.main.path]
            reads += [config.eval.mixture.main.path]
            reads += [term.model for term in terms.values()]
            for path in reads:
                assert not path.startswith(root) or path[len(root) + 1 :] in made, path
        assert stage.name not in made
        made.add(stage.name)


def test_the_commands_can_be_seen_before_anything_runs(capsys, tmp_path):
    main = runpy.run_path("scripts/world.py")["main"]
    main(["--workdir", str(tmp_path), "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    runs = [s for s in pipeline.stages(MINI, f"{tmp_path}/seed=0") if s.command]
    assert lines == [stage.command for stage in runs] and not list(tmp_path.iterdir())
    main(["--workdir", "ROOT", "--scale", "paper", "--dry-run"])
    assert "configs/study/paper.py:dpo" in capsys.readouterr().out
    with pytest.raises(UserError, match="add --dry-run"):
        main(["--workdir", "ROOT", "--scale", "paper"])


def test_what_is_done_is_not_made_again_and_a_failure_leaves_nothing(tmp_path, capsys):
    calls = []

    def make(root, name):
        calls.append(name)
        if name == "bad" and calls.count("bad") == 1:
            raise RuntimeError("no")
        return [{"name": name}]

    todo = [pipeline._write(tmp_path, f"{n}.jsonl", 1, make, n) for n in ("a", "bad")]
    with pytest.raises(RuntimeError):
        pipeline.go(todo, tmp_path)
    assert "did not end" in capsys.readouterr().err
    assert not (tmp_path / "bad.jsonl").exists()
    pipeline.go(todo, tmp_path)
    assert calls == ["a", "bad", "bad"]
    assert "1 of 2 stages are done already" in capsys.readouterr().out
    assert json.loads((tmp_path / "bad.jsonl").read_text()) == {"name": "bad"}
    assert set(pipeline.spent(tmp_path)) == {"a.jsonl", "bad.jsonl"}


def test_the_time_left_follows_the_pace(tmp_path, capsys, monkeypatch):
    clock = iter([0, 10, 10, 30])
    monkeypatch.setattr(pipeline.time, "monotonic", lambda: next(clock))
    nothing, no = lambda: None, lambda: False
    pipeline.go([Stage("a", 5, nothing, no), Stage("b", 10, nothing, no)], tmp_path)
    said = capsys.readouterr().out
    assert "a" in said and "about 15 s left" in said  # as told
    assert "about 20 s left" in said  # at half the speed


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """As if policies had run that are right with some probability."""
    folder = tmp_path_factory.mktemp("study")
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
    picked = lambda *golds: {"gold": golds, "reward": golds}
    best = {"1": picked(0.2, 0.3), "4": picked(0.5, 0.6), "16": picked(0.4, 0.5)}
    for size, right in (("medium", [1.0] * 9), ("small", [1.0, 0.0, 0.5] * 3)):
        path = folder / f"evals/judge-{size}-fine_grained.json"
        path.write_text(json.dumps({"right": {"chat": right}, "best": best}))
    return folder


def observed(root, name):
    return [json.loads((root / f"evals/{name}.json").read_text())["observed"]]


def test_estimates_hold_the_mean_and_are_wider_for_fewer_prompts(root):
    [one] = runs = observed(root, "sft-medium")
    found = estimate(runs)
    for name, value in judge.summary(one).items():
        assert found[name]["mean"] == value
        assert found[name]["low"] <= value <= found[name]["high"]
    few = {
        family: {name: values[:20] for name, values in columns.items()}
        for family, columns in one.items()
    }
    width = lambda x: x["average"]["high"] - x["average"]["low"]
    assert width(estimate([few])) > 1.3 * width(found)


def test_seeds_that_differ_widen_the_interval(root):
    good, bad = observed(root, "grpo"), observed(root, "pretrain-medium")
    width = lambda x: x["average"]["high"] - x["average"]["low"]
    assert width(estimate(good + bad)) > 3 * width(estimate(good * 2))


def test_differences_are_of_the_same_prompts(root):
    good, start = observed(root, "grpo"), observed(root, "sft-medium")
    assert difference(good, good) == {"mean": 0.0, "low": 0.0, "high": 0.0}
    gap = difference(good, start)
    assert gap["low"] > 0.1 and verdict(gap) == "agrees"
    assert verdict(difference(start, good)) == "disagrees"
    gap = difference(observed(root, "dpo-web"), start)
    assert verdict(gap) == "cannot tell"


def test_the_report_says_what_was_found(root):
    document = analysis.document([str(root)], MINI, "make world")
    page, text = report.html(document), markdown.markdown(document)
    best = estimate(observed(root, "grpo"))["average"]["mean"]
    assert f"{100 * best:.1f}" in page and f"{100 * best:.1f}" in text
    assert "Best is GRPO" in document["lead"]
    rows = document["sections"][0]["blocks"][0]["rows"]
    verdicts = {row["claim"]: row["verdict"] for row in rows}
    assert verdicts["Rewards that can be verified raise reasoning."] == "agrees"
    assert verdicts["PPO is better than DPO on the same data."] == "not run"
    assert verdicts["Larger reward models judge better."] == "agrees"
    assert verdicts["Optimised further, a reward model's pick gets worse."] == "agrees"
