"""A finished run as a Hugging Face directory.

    python scripts/export.py WORKDIR OUT [--dtype bfloat16]

Adapters are merged. OUT holds safetensors, config.json, generation_config.json, the
tokenizer and the chat template, and loads in transformers.
"""

import argparse

from easylm.errors import explain
from easylm.models import hf
from easylm.training.checkpoint import load_for_inference


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("workdir")
    options.add_argument("out")
    options.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    args = options.parse_args()
    run = load_for_inference(args.workdir)
    hf.save(args.out, run.params, run.model.config, run.tokenizer, dtype=args.dtype)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    explain(main)
