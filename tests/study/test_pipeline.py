"""The stages of the study: in an order that works, made once, and what they say."""

import json

import numpy as np
import pytest

from configs.study import world as presets
from easylm.evals import world as judge
from easylm.simulator import world
from easylm.study import analysis, markdown, pipeline, report
from easylm.study.pipeline import MINI, Stage


def flags(command):
    words = command.split()
    pairs = (
        word.removeprefix("--config.").split("=", 1) for word in words if "=" in word
    )
    return words[words.index("--config") + 1].split(":")[1], dict(pairs)


def test_every_stage_comes_after_what_it_reads(tmp_path):
    made, root = set(), str(tmp_path)
    for stage in pipeline.stages(MINI, root):
        if stage.command:
            preset, changes = flags(stage.command)
            config = presets.get_config(preset)
            changes["seed"] = int(changes["seed"])
            config.update_from_flattened_dict(changes)
            terms = config.get("reward", {"terms": {}})["terms"]
            reads = [config.init, config.data.mixture.main.path]
            reads += [config.eval.mixture.main.path]
            reads += [term.model for term in terms.values()]
            for path in reads:
                assert not path.startswith(root) or path[len(root) + 1 :] in made, path
        assert stage.name not in made
        made.add(stage.name)


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
        task.prompt: (task.good[0], task.fair[0])
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
    line = {"gold": 0.4, "random": 0.3, "reward": 0.0, "oracle": 0.9}
    found = {"right": {"chat": [1, 1, 0.5]}, "best_of_n": {"1": line, "16": line}}
    path = folder / "evals/judge-small-mix.json"
    path.write_text(json.dumps(found))
    return folder


def test_estimates_hold_the_mean_and_are_wider_for_fewer_prompts(root):
    one = json.loads((root / "evals/sft-medium.json").read_text())
    found = analysis.estimate(one["observed"])
    for name, value in one["summary"].items():
        assert found[name]["mean"] == value
        assert found[name]["low"] <= value <= found[name]["high"]
    few = {
        family: {name: values[:20] for name, values in columns.items()}
        for family, columns in one["observed"].items()
    }
    width = lambda x: x["average"]["high"] - x["average"]["low"]
    assert width(analysis.estimate(few)) > 1.3 * width(found)


def test_differences_are_of_the_same_prompts(root):
    of = lambda name: json.loads((root / f"evals/{name}.json").read_text())["observed"]
    same = analysis.difference(of("grpo"), of("grpo"))
    assert same == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert analysis.difference(of("grpo"), of("sft-medium"))["low"] > 0.1
    gap = analysis.difference(of("dpo-web"), of("sft-medium"))
    assert gap["low"] < 0 < gap["high"]


def test_the_report_says_what_was_found(root):
    document = analysis.document(str(root))
    page, text = report.html(document), markdown.markdown(document)
    best = analysis.estimate(
        json.loads((root / "evals/grpo.json").read_text())["observed"]
    )
    assert f"{100 * best['average']['mean']:.1f}" in page
    assert "Best is GRPO" in document["lead"] and "GRPO" in text
    assert "small, a mix of four" in page
