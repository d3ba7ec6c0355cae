"""Runs the notebooks from start to end, in a folder of their own; any error ends it.

    python scripts/notebooks.py [NAME ...] [--small] [--write]

One after the other, so that the later ones find what the earlier ones made; NAME is
the beginning of a file name, such as 02. --small has tiny numbers in place of those of
the cell tagged "parameters". --write puts the outputs into notebooks/. Needs
pip install -e '.[notebooks]'.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from easylm.errors import UserError, explain

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
# Tiny numbers, a tiny model, and answers to train on that it could not give.
SMALL = """\
from configs.study import world as _presets
from easylm import notebook as _notebook
from easylm.simulator import world as _world

RUNS = "runs/small"
TEXT_STEPS = TALK_STEPS = STEPS = CANDIDATES = 1
PROMPTS, HELD_OUT, N, TESTED = 4, 4, 2, 70
PAIRS, BETAS, SEEDS = 16, (0.1,), (0, 1)


def _few(name, whole=_presets.get_config):
    config = whole(name)
    config.data.mixture.main.max_rows = 200
    config.eval.mixture.main.max_rows = 8
    if name.startswith("pretrain"):
        config.model.vocab_size = 400
    if name in ("dpo", "judge"):
        config.data.items_per_update = 8
    if "rollout" in config:
        config.batch, config.eval.batch, config.eval.every = 16, 8, 0
        config.rollout.max_new_tokens = 8
    return config


_presets.get_config = _few
_presets.SIZES["medium"] = (32, 1, 2, 64)
_answers = lambda task: [task.good[0], task.fair[-1], "I do not know.", "No."]
for _part in ("train", "dev"):
    _notebook.kept(
        f"{RUNS}/data/answers-{_part}.jsonl",
        lambda: [
            {"family": family, "fact": task.fact, "prompt": task.prompt}
            | {"check": task.check, "answers": _answers(task)}
            for family in _world.FAMILIES
            for task in _world.tasks(family, _part, PROMPTS)
        ],
    )
"""


def main(argv=None) -> None:
    args = _arguments().parse_args(sys.argv[1:] if argv is None else argv)
    if args.small and args.write:
        raise UserError("outputs of tiny numbers say nothing; leave --write out")
    with tempfile.TemporaryDirectory() as folder:
        for path in chosen(args.names):
            began = time.monotonic()
            notebook = small(path) if args.small else read(path)
            execute(notebook, args.folder or folder)
            print(f"{path.name:<40}{time.monotonic() - began:>5.0f} s", flush=True)
            if args.write:
                path.write_text(text(notebook))


def chosen(names) -> list[Path]:
    paths = sorted(FOLDER.glob("*.ipynb"))
    found = [p for p in paths if not names or p.name.startswith(tuple(names))]
    if not found:
        there = ", ".join(path.stem for path in paths)
        raise UserError(
            f"no notebook is called {' or '.join(names)}; there are {there}"
        )
    return found


def read(path) -> dict:
    return json.loads(Path(path).read_text())


def small(path) -> dict:
    """The notebook with a cell of tiny numbers behind its parameters."""
    notebook = read(path)
    cells = notebook["cells"]
    [place] = [i for i, c in enumerate(cells) if "parameters" in tags(c)]
    made = {"cell_type": "code", "id": "small", "metadata": {}, "outputs": []}
    made |= {"execution_count": None, "source": SMALL.splitlines(keepends=True)}
    cells.insert(place + 1, made)
    return notebook


def tags(cell) -> list[str]:
    return cell["metadata"].get("tags", [])


def execute(notebook: dict, folder: str) -> None:
    """Runs all cells in a kernel, and leaves their outputs in the notebook."""
    try:
        import nbformat
        from nbclient import NotebookClient
    except ImportError as error:
        raise UserError(f"{error}; pip install -e '.[notebooks]'") from None
    node = nbformat.reads(text(notebook), as_version=4)
    where = {"metadata": {"path": folder}}
    options = dict(timeout=None, record_timing=False, resources=where)
    options["extra_arguments"] = ["--log-level=ERROR"]
    client = NotebookClient(node, **options)
    client.execute()
    notebook["cells"] = json.loads(nbformat.writes(node))["cells"]


def text(notebook: dict) -> str:
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _arguments() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("names", nargs="*", metavar="NAME")
    options.add_argument("--small", action="store_true", help="with tiny numbers")
    options.add_argument("--write", action="store_true", help="keep the outputs")
    options.add_argument("--folder", help="where they run; else a temporary one")
    return options


if __name__ == "__main__":
    explain(main)
