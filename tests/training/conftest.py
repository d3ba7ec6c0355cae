"""Shared by tests of what a run writes."""

import importlib

import pytest


@pytest.fixture
def bucket(monkeypatch):
    """gs:// in the memory of this process."""
    from etils import epath
    from fsspec.implementations.memory import MemoryFileSystem

    known = importlib.import_module("fsspec.registry")._registry
    for scheme in ("gs", "gcs"):
        monkeypatch.setitem(known, scheme, MemoryFileSystem)
    path = epath.Path("gs://bucket/run")
    yield path
    path.parent.rmtree()
