"""Labels by majority: what a model itself answers most often becomes the ground truth.

    python scripts/label.py --model DIR --data FILE --format hendrycks_math \
        --out labelled.jsonl [--samples 64] [--verifier math] [--wrong]

Samples answers to every prompt and writes {"prompt", "verifier", "answer"} rows, to be
read with format prompt_only; prompts without a majority are left out. --wrong keeps
only prompts whose majority is not the ground truth of the data, with that wrong label
(the "incorrect" rewards of Spurious Rewards, arXiv 2506.10947).
"""

import argparse
import json
import sys

from etils import epath

from easylm.errors import UserError, explain


def main(argv=None) -> None:
    args = _arguments().parse_args(sys.argv[1:] if argv is None else argv)
    import jax

    from easylm import sharding
    from easylm.data import formats
    from easylm.rewards import spurious
    from easylm.rollout.ask import ask
    from easylm.training.checkpoint import load_for_inference

    read = formats.get(args.format)
    source = formats.open_for(read, args.data)
    count = min(len(source), args.max_rows or len(source))
    layout = sharding.make_layout()
    loaded = load_for_inference(args.model, layout, template=args.template)
    if not loaded.template:
        raise UserError(f"{args.model} has no chat template; name one: --template tulu")
    kept = 0
    with epath.Path(args.out).open("w") as out, sharding.use(layout):
        for first in range(0, count, args.batch):
            rows = range(first, min(first + args.batch, count))
            examples = [read(source[row]) for row in rows]
            asked = [example["prompt"] for example in examples]
            groups = ask(
                loaded,
                asked,
                jax.random.fold_in(jax.random.key(args.seed), first),
                max_new_tokens=args.max_new_tokens,
                samples=args.samples,
                rows=args.rows,
            )
            labels = [spurious.majority_answer(g, args.verifier) for g in groups]
            if args.wrong:
                truths = [example["verifiers"][0][1] for example in examples]
                wrong = spurious.wrong_labels(labels, truths, args.verifier)
                labels = [x if w else None for x, w in zip(labels, wrong, strict=True)]
            for turns, label in zip(asked, labels, strict=True):
                if label is None:
                    continue
                row = {"prompt": turns, "verifier": args.verifier, "answer": label}
                out.write(json.dumps(row) + "\n")
                kept += 1
    print(f"{kept:,} of {count:,} prompts have a label; {args.out}")


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="workdir or Hugging Face folder")
    parser.add_argument("--data", required=True)
    parser.add_argument("--format", default="prompt_only")
    parser.add_argument("--out", required=True)
    parser.add_argument("--template", default="")
    parser.add_argument("--verifier", default="math", choices=("math", "gsm8k"))
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--max_new_tokens", type=int, default=1024)
    parser.add_argument("--max_rows", type=int)
    parser.add_argument("--batch", type=int, default=16, help="prompts at a time")
    parser.add_argument("--rows", type=int, help="that decode at a time; all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wrong", action="store_true")
    return parser


if __name__ == "__main__":
    explain(main)
