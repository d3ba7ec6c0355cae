"""Supervised fine-tuning on conversations.

    python -m easylm.train --config configs/sft.py --workdir runs/sft \
        --config.init=/models/Llama-3.2-1B \
        --config.data.mixture.main.path='/data/tulu/*.parquet'

The values are those of the Tulu 2 SFT runs (2 epochs, 128 rows of 8,192 tokens, lr
2e-5, linear decay after 3% of warmup). Less memory: config.microbatches,
config.model.lora_rank.

On a laptop, from scratch: configs/study/world.py:pretrain_small, then :sft.
"""

from ml_collections.config_dict import placeholder

from configs import common


def get_config(arg: str = ""):
    return common.preset(arg, default=study)


def study():
    """The study's recipe, over whatever init and mixture it is given."""
    c = common.base()
    c.data.mixture.main = common.source(placeholder(str))
    c.eval.mixture.main = common.source(placeholder(str))
    c.data.length = 8192
    c.batch = 128
    c.epochs = 2
    return c
