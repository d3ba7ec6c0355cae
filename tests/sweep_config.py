"""A config with sweeps, for tests: the tiny run on the data that is its preset."""

from tests import tiny


def get_config(arg: str = ""):
    return tiny.config(arg, steps=2, **{"checkpoint.every": 0})


def sweep_lr(add):
    """Learning rates over seeds.

    The decay is the same everywhere, so that no name says it.
    """
    for lr in (1e-3, 2e-5):
        for seed in (0, 1):
            add({"optimizer.lr": lr, "seed": seed, "optimizer.decay": 0.5})


def sweep_seeds(add):
    add({})
    add({"seed": 1})
