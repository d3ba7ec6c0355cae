"""Which iterations are recorded, and where the trace goes."""

import gzip
import json

import jax
import pytest

from easylm.errors import UserError
from easylm.training.profiler import Profiler, parse


@pytest.mark.parametrize("text, wanted", [("", []), ("0:1", [0]), ("7:9", [7, 8])])
def test_bounds_are_those_of_a_slice(text, wanted):
    assert list(parse(text)) == wanted


@pytest.mark.parametrize(
    "text", ["10", "5:5", "9:7", "-3:4", "a:b", "1:2:3", "1:", " "]
)
def test_other_bounds_are_explained_with_an_example(text):
    with pytest.raises(UserError, match="--config.profile=10:13 records") as error:
        parse(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize("todo", [range(13, 20), range(5, 10), range(6, 6)])
def test_a_run_that_does_none_of_them_says_so(todo, tmp_path):
    assert "iterations 10 to 12" in Profiler("10:13", tmp_path).missed(todo)
    assert not Profiler("", tmp_path).missed(todo)


def test_a_run_that_does_some_of_them_says_nothing(tmp_path):
    for todo in (range(12, 20), range(0, 11), range(0, 99), range(11, 12)):
        assert not Profiler("10:13", tmp_path).missed(todo)


def test_a_trace_goes_to_a_bucket_and_opens_in_perfetto(bucket):
    with Profiler("2:4", bucket) as profiler:
        for i in range(6):
            profiler.begin(i)
            with jax.profiler.TraceAnnotation(f"part {i}"):
                pass
            if profiler.ends(i):
                assert (
                    profiler.end() == f"profile iterations 2 to 3 in {bucket}/profile"
                )
    (folder,) = (bucket / "profile" / "plugins" / "profile").iterdir()
    assert any(file.name.endswith(".xplane.pb") for file in folder.iterdir())
    packed = (folder / "perfetto_trace.json.gz").read_bytes()
    events = json.loads(gzip.decompress(packed))["traceEvents"]
    names = {event.get("name") for event in events}
    assert {f"part {i}" for i in range(6)} & names == {"part 2", "part 3"}


def test_a_run_that_ends_too_early_keeps_what_there_is(tmp_path, capsys):
    with pytest.raises(KeyError), Profiler("2:9", tmp_path) as profiler:
        profiler.begin(3)
        profiler.begin(4)
        raise KeyError
    assert "iterations 3 to 4 in" in capsys.readouterr().err
    assert list((tmp_path / "profile").iterdir())
