"""Imports point one way, so that a part can be read without what stands on it."""

import ast
import pathlib

import pytest

from tests.tiny import ROOT

ALLOWED = {
    "losses": set(),
    "data": {"sharding", "errors", "simulator"},  # its builders are opened by name
    "models": {"sharding", "errors"},
    "rewards": {"errors", "simulator", "own"},
    "rollout": {"sharding", "errors", "models", "data", "losses", "rewards"},
    "simulator": {"errors"},
    "objectives": {
        *("sharding", "errors", "own", "losses", "models", "data", "rollout"),
        "rewards",
    },
}


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_is_below_it(package):
    for path in pathlib.Path(ROOT, "easylm", package).glob("*.py"):
        for name in imported(path):
            assert name in ALLOWED[package] | {package}, f"{path.name} imports {name}"


@pytest.mark.parametrize("heavy", ["torch", "tensorflow", "transformers"])
def test_heavy_packages_are_not_imported_at_run_time(heavy):
    for path in pathlib.Path(ROOT, "easylm").rglob("*.py"):
        assert f"import {heavy}\n" not in path.read_text(), path


def test_verifiers_do_not_wait_for_jax():
    """Not even where something is imported only when it is used: workers are many."""
    for path in pathlib.Path(ROOT, "easylm", "rewards").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", ())]
            if isinstance(node, ast.Import | ast.ImportFrom):
                names.append(getattr(node, "module", None) or "")
                assert not any(n.split(".")[0] == "jax" for n in names), path.name


def imported(path):
    """The second parts of all `easylm.x` that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "easylm"
        ):
            parts = node.module.split(".")[1:]
            yield from parts[:1] or [alias.name for alias in node.names]
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("easylm."):
                    yield alias.name.split(".")[1]
