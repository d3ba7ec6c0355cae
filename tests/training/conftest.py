"""Shared by tests of what a run writes."""

import pytest
from etils import epath


@pytest.fixture
def bucket():
    """A workdir in an object store."""
    from tests import bucket as stand_in

    store = stand_in.store()
    yield epath.Path("gs://bucket/run")
    store.clear()
