"""Selection: what is trained by name, and trees taken apart and put together."""

import jax
import numpy as np
import pytest

from easylm.errors import UserError
from easylm.training import select
from tests.training.toy import SHAPES, flat, random_tree


def test_trainable_takes_what_train_names_and_freeze_does_not():
    spec = random_tree(0)
    names = lambda **k: {
        n for n, yes in flat(select.trainable(spec, **k)).items() if yes
    }
    assert names() == set(SHAPES) == names(freeze="", train="")
    assert names(train=r"/lora_[ab]$") == {"layers/mlp/up/lora_a"}
    assert names(train="attn", freeze="bias|norm") == {"layers/attn/q", "layers/attn/o"}


@pytest.mark.parametrize(
    "keywords, words",
    [
        ({"freeze": "mpl"}, "freeze='mpl' is in no parameter name; names are: embed"),
        ({"train": "lora_c"}, "train='lora_c' is in no parameter name"),
        ({"train": "attn", "freeze": "layers"}, "nothing is left to train"),
        ({"freeze": "("}, "no regular expression"),
    ],
)
def test_patterns_that_cannot_be_meant_are_errors(keywords, words):
    with pytest.raises(UserError, match=words):
        select.trainable(random_tree(0), **keywords)


def test_combine_undoes_partition():
    params = random_tree(0)
    mask = select.trainable(params, freeze="norm")
    back = select.combine(*select.partition(params, mask))
    jax.tree.map(np.testing.assert_array_equal, back, params)
