"""The compiler's flags where libtpu reads them."""

from easylm.pods import flags


def test_what_the_user_says_comes_last_and_nothing_twice(monkeypatch):
    name = next(iter(flags.TPU))
    monkeypatch.setenv("LIBTPU_INIT_ARGS", f"--{name}=false")
    flags.apply()
    first = flags.os.environ["LIBTPU_INIT_ARGS"].split()
    assert first[-1] == f"--{name}=false" and f"--{name}=true" in first
    flags.apply()
    assert flags.os.environ["LIBTPU_INIT_ARGS"].split() == first
