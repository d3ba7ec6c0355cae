"""Know before you rent: what a run would do on a TPU slice that is not here.

    python scripts/plan.py --config configs/ppo.py --topology v5p-256 \
        --config.init=llama:2-13b --config.reward.terms.model.model=llama:2-13b

Every program of the run is compiled by the TPU's own compiler (pip install
'easylm[plan]'), on any machine. A preset may stand for a checkpoint that lies
elsewhere. Slices are named as the cloud names them: v4-256, v5p-128, v5litepod-64,
v6e-256, tpu7x-64, "2 x v6e-256", or by shape, v5p:4x4x8.

    --search      tries meshes, remat and microbatches, and ranks what fits
    --price 4.2   of a chip-hour, in any currency
    --json        for programs to read
    --exact       the compiler's slow and careful mode: better times
"""

import json
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags
from ml_collections import config_flags

from easylm import plan as planner
from easylm.errors import UserError, explain, parse
from easylm.pods import show

CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
TOPOLOGY = flags.DEFINE_string("topology", None, "Such as v5p-128.")
PRICE = flags.DEFINE_float("price", None, "Of a chip-hour.")
JSON = flags.DEFINE_bool("json", False, "Print JSON.")
SEARCH = flags.DEFINE_bool("search", False, "Try meshes, remat and microbatches.")
EXACT = flags.DEFINE_bool("exact", False, "The compiler's slow and careful mode.")


def main(argv) -> None:
    if len(argv) > 1:
        raise UserError(f"{argv[1]!r} is not a flag; write --config.name=value")
    if CONFIG.value is None or TOPOLOGY.value is None:
        raise UserError("give --config FILE and --topology NAME, such as v5p-128")
    config, topology, price = CONFIG.value, TOPOLOGY.value, PRICE.value
    if SEARCH.value:
        found = planner.search(config, topology)
        tried = [t.changes | show.as_dict(t.plan, price) for t in found]
        print(json.dumps(tried, indent=1) if JSON.value else show.table(found))
        return
    made = planner.plan(config, topology, fast=not EXACT.value)
    as_json = lambda: json.dumps(show.as_dict(made, price), indent=1)
    print(as_json() if JSON.value else show.text(made, price))


if __name__ == "__main__":
    explain(app.run, main, flags_parser=parse)
