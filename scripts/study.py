"""The study "Unpacking DPO and PPO" on the embedded world, from text to a report.

    python scripts/study.py --workdir runs/study              # on a laptop
    python scripts/study.py --workdir runs/study --dry-run    # the commands of its runs
    python scripts/study.py --workdir runs/full --scale full  # all axes, three seeds
    python scripts/study.py --workdir DIR --scale paper --dry-run

Runs every stage that is not done yet, and writes report.html, report.md and
results.json into the workdir. Stop it with Ctrl-C; the same command goes on. With
several seeds, each has a folder of its own in the workdir, seed=0 and so on. A machine
may make some of them (--seeds 1 2); the report is of all whose evaluations are in the
workdir, wherever they were made, and --report writes nothing but that. With --scale
paper the commands are those of the paper's own runs, for a pod; DIR is where its models
and data lie (configs/study/paper.py).
"""

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path

from easylm.errors import UserError, explain
from easylm.study import paper
from easylm.study.names import DPO


def main(argv=None) -> None:
    args = _arguments().parse_args(sys.argv[1:] if argv is None else argv)
    if args.scale == "paper":
        if not args.dry_run:
            raise UserError("the paper's runs are for a pod: add --dry-run to see them")
        print(paper.show(paper.runs(args.workdir, f"{args.workdir}/runs")))
        return
    from easylm.study import pipeline

    scale = pipeline.SCALES[args.scale]
    all, mine = plans(args, scale)
    if args.report:
        write(args, scale, all)
    elif args.dry_run:
        stages = [stage for plan in mine.values() for stage in plan()]
        print("\n".join(stage.command for stage in stages if stage.command))
    else:
        make(args, scale, all, mine)


def plans(args, scale) -> tuple[dict, dict]:
    """{folder: its stages} of all seeds, and of those that are made here."""
    from easylm.study import pipeline

    here = args.seeds or scale.seeds
    known = sorted({*here, *scale.seeds})
    folder = args.workdir + ("/seed={}" if len(known) > 1 else "")
    root = {seed: folder.format(seed) for seed in known}
    all = {root[n]: partial(pipeline.stages, scale, root[n], n) for n in known}
    return all, {root[n]: all[root[n]] for n in here}


def make(args, scale, all, mine) -> None:
    """What is not there yet; a report whenever a seed is done."""
    from easylm.study import work

    # Programs compiled once serve all stages and seeds, and the next start.
    cache = os.path.abspath(f"{args.workdir}/cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

    def ended(root):
        write(args, scale, all)
        print(f"talk to it: python scripts/chat.py {root}/{DPO}")

    # A stage makes good use of two cores. A TPU or GPU belongs to one process.
    on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu"
    jobs = max(1, min(4, len(work.cores()) // 2)) if on_cpu else 1
    work.go(mine, args.jobs or jobs, ended)


def write(args, scale, plans) -> None:
    """The report of the seeds that are done."""
    from easylm.study import analysis, markdown, pipeline, report

    roots = [root for root, plan in plans.items() if pipeline.is_judged(plan())]
    if not roots:
        raise UserError(f"{args.workdir} has no seed whose evaluations are done")
    command = f"python scripts/study.py --workdir {args.workdir} --scale {args.scale}"
    document = analysis.document(roots, scale, command)
    root = Path(args.workdir)
    (root / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (root / "report.html").write_text(report.html(document))
    images = {}
    for name, picture in report.svgs(document).items():
        (root / f"{name}.svg").write_text(picture)
        images[name] = f"{name}.svg"
    (root / "report.md").write_text(markdown.markdown(document, images))
    print(f"\n{document['lead']}\n\nall of it:  {root / 'report.html'}")


def _arguments() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--workdir", required=True, metavar="DIR")
    options.add_argument(
        "--scale", default="mini", choices=("mini", "full", "smoke", "paper")
    )
    options.add_argument("--dry-run", action="store_true", help="print the commands")
    options.add_argument("--report", action="store_true", help="of what is done, only")
    options.add_argument("--seeds", type=int, nargs="+", metavar="N", help="only these")
    options.add_argument(
        "--jobs", type=int, help="stages at a time; on a CPU up to 4, one for two cores"
    )
    return options


if __name__ == "__main__":
    explain(main)
