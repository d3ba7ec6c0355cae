"""How good a reward model is: RewardBench and its relatives, or best of N.

    python scripts/eval_reward_model.py --model DIR [DIR ...] --data FILE [FILE ...]
        [--kind rewardbench] [--prior FILE [FILE ...]] [--out FILE.json]

DIR is the workdir of a run or a Hugging Face classifier; several are an ensemble, whose
score is their mean.

The kind shows in the columns of the data:

    rewardbench    allenai/reward-bench, split "filtered"; --prior adds the files of
                   allenai/pref-test-sets, which count half
    rewardbench2   allenai/reward-bench-2
    m_rewardbench  C4AI-Community/multilingual-reward-bench, all languages at once;
                   with the file of RewardBench among them, agreement with English
    rewardmath     RewardMATH/RewardMATH
    best_of_n      rows of prompt, candidates and, if known, gold or correct

Prints a table and writes the same numbers as JSON, to DIR/eval_KIND.json if not told.
"""

import argparse
import importlib
import json
import os
import re

from etils import epath

from easylm.data.sources import open_source
from easylm.errors import UserError, explain
from easylm.evals import rewardbench

KINDS = ("best_of_n", "rewardmath", "m_rewardbench", "rewardbench2", "rewardbench")


def main(argv=None) -> None:
    args = arguments().parse_args(argv)

    def score(conversations):  # loads the model when the data has been read
        from easylm.evals.scoring import load_scorer

        how = {"length": args.length, "batch": args.batch, "template": args.template}
        # One after the other: each is gone before the next is read.
        scores = [load_scorer(path, **how)(conversations) for path in args.model]
        return sum(scores) / len(scores)

    run(args, score)


def run(args, score) -> dict:
    """Reads, scores, prints and writes; -> what was written."""
    rows = read_rows(args.data)
    kind = recognise(rows) if args.kind == "auto" else args.kind
    if args.prior:
        if kind != "rewardbench":
            raise UserError(f"--prior belongs to rewardbench, the data is {kind}")
        rows += read_prior(args.prior)
    out = args.out or os.path.join(args.model[0], f"eval_{kind}.json")
    _check_out(out)
    judge = importlib.import_module(f"easylm.evals.{kind}")
    scores = score(judge.read(rows))
    results = judge.report(rows, scores)
    facts = {"kind": kind, "model": args.model, "data": args.data, "prior": args.prior}
    written = facts | {"length": args.length, "results": results}
    if kind == "best_of_n":
        written["picks"] = judge.picks(rows, scores)
    print(table(results))
    epath.Path(out).write_text(json.dumps(written, indent=2) + "\n")
    print(f"wrote {out}")
    return written


def read_rows(paths) -> list[dict]:
    source = open_source(paths)
    return [{**row, "where": source.where(i)} for i, row in enumerate(source)]


def read_prior(paths) -> list[dict]:
    """Rows of the prior sets that count, with the set as their subset.

    The published files are named after their set (shp-00000-of-00001.parquet), and
    their own subset says something else.
    """
    rows = []
    for row in read_rows(paths):
        name = re.split(r"[-.]", os.path.basename(row["where"]))[0]
        subset = name if name in rewardbench.PRIOR else row.get("subset")
        if subset in rewardbench.PRIOR:
            rows.append(row | {"subset": subset})
    if not rows:
        known = ", ".join(rewardbench.PRIOR)
        raise UserError(
            f"{', '.join(paths)}: no row of a prior set; the file's name begins with,"
            f" or its subset is, one of {known}"
        )
    return rows


def recognise(rows) -> str:
    """The kind whose columns the rows have."""
    names = set().union(*rows) - {"where"}
    for kind in KINDS:
        if names >= importlib.import_module(f"easylm.evals.{kind}").COLUMNS:
            return kind
    raise UserError(
        f"the columns {', '.join(sorted(names))} are of no known kind; give --kind,"
        f" one of {', '.join(KINDS)}, and its columns"
    )


def table(results: dict) -> str:
    """Numbers first, then each table with its columns aligned."""
    single = {k: v for k, v in results.items() if not isinstance(v, dict)}
    blocks = [[[name, _number(value)] for name, value in single.items()]]
    for title, lines in results.items():
        if title not in single:
            columns = list(dict.fromkeys(c for line in lines.values() for c in line))
            cells = [
                [k, *(_number(v.get(c)) for c in columns)] for k, v in lines.items()
            ]
            blocks.append([[title, *columns], *cells])
    return "\n\n".join("\n".join(_aligned(block)) for block in blocks)


def _aligned(lines) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True)]
        ).rstrip()
        for line in lines
    ]


def _number(value) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _check_out(path) -> None:
    """Known before the model has scored for an hour, not after."""
    folder = os.path.dirname(path) or "."
    if "://" not in folder and not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: not a folder to write to; give --out FILE.json")


def arguments() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--model", required=True, nargs="+", metavar="DIR")
    options.add_argument("--data", required=True, nargs="+", metavar="FILE")
    options.add_argument("--kind", default="auto", choices=["auto", *sorted(KINDS)])
    options.add_argument("--prior", nargs="+", default=[], metavar="FILE")
    options.add_argument("--out", metavar="FILE.json")
    options.add_argument("--batch", type=int, default=16, metavar="N")
    options.add_argument("--template", default="", metavar="NAME")
    options.add_argument("--length", type=int, default=2048, metavar="TOKENS")
    return options


if __name__ == "__main__":
    explain(main)
