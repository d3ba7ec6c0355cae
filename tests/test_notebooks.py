"""The notebooks: what they show really came out, and every cell runs."""

import re
import runpy
from pathlib import Path

import pytest

from configs.study import world as presets
from tests.tiny import ROOT

runner = runpy.run_path(f"{ROOT}/scripts/notebooks.py")
PATHS = runner["chosen"](())
OURS = re.compile(r"/(?:home|root|tmp|work|Users|content|usr|opt)/")


def code(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_there_are_five():
    assert [path.stem[:2] for path in PATHS] == ["01", "02", "03", "04", "05"]


def test_a_notebook_has_the_form_that_readers_of_notebooks_want(path):
    notebook = runner["read"](path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) and all(
        re.fullmatch(r"[\w-]{1,64}", x) for x in ids
    )
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        assert all(isinstance(line, str) for line in cell["source"])
        assert ("outputs" in cell) == (cell["cell_type"] == "code")
    assert path.stat().st_size < 300_000


def test_the_first_cell_installs_and_is_the_same_everywhere(path):
    [first] = {source(code(runner["read"](path))[0]) for path in PATHS}
    assert "pip install" in first and "constraints.txt" in first
    notebook = runner["read"](path)
    assert [cell["cell_type"] for cell in notebook["cells"][:2]] == ["markdown", "code"]


def test_one_cell_has_the_numbers_that_decide_how_long_it_takes(path):
    notebook = runner["read"](path)
    [cell] = [
        cell for cell in notebook["cells"] if "parameters" in runner["tags"](cell)
    ]
    assert all(re.match(r"[A-Z_]+ = ", line) for line in cell["source"])
    given = {line.split(" =")[0] for line in cell["source"]}
    assert given <= set(re.findall(r"\b[A-Z_]+\b", runner["SMALL"]))


def test_outputs_are_those_of_one_run_from_start_to_end_without_noise(path):
    cells = code(runner["read"](path))
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    kinds = [output["output_type"] for output in outputs]
    assert kinds.count("stream") >= 2 and "display_data" in kinds
    assert "error" not in kinds and not cells[0]["outputs"]
    for output in outputs:
        assert output.get("name") != "stderr", output["text"]
        assert not OURS.search(str(output.get("text")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of all notebooks: the later ones use what the earlier ones made."""
    return tmp_path_factory.mktemp("notebooks")


def test_it_runs_from_start_to_end(path, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(presets, "get_config", presets.get_config)
    monkeypatch.setattr(presets, "SIZES", dict(presets.SIZES))
    names = {"__name__": "__main__"}
    for cell in code(runner["small"](path)):
        magic, _, text = source(cell).partition("\n")
        if magic.startswith("%%writefile "):
            Path(magic.split()[1]).write_text(text)
        else:
            exec(compile(source(cell), f"{path.name}, {cell['id']}", "exec"), names)
