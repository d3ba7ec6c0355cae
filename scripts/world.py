"""The study "Unpacking DPO and PPO" on the embedded world, from text to a report.

    python scripts/world.py --workdir runs/world              # on a laptop
    python scripts/world.py --workdir runs/world --dry-run    # the commands of its runs
    python scripts/world.py --workdir runs/full --scale full  # all axes, three seeds
    python scripts/world.py --workdir DIR --scale paper --dry-run

Runs every stage that is not done yet, and writes report.html, report.md and
results.json into the workdir. Stop it with Ctrl-C; the same command goes on. With
--scale paper the commands are those of the paper's own runs, for a pod; DIR is where
its models and data lie (configs/study/paper.py).
"""

import argparse
import json
import os
import sys
from pathlib import Path

from absl import logging

from easylm.errors import UserError, explain
from easylm.study import paper


def main(argv=None) -> None:
    args = _arguments().parse_args(sys.argv[1:] if argv is None else argv)
    if args.scale == "paper":
        if not args.dry_run:
            raise UserError("the paper's runs are for a pod: add --dry-run to see them")
        print(paper.show(paper.runs(args.workdir, f"{args.workdir}/runs")))
        return
    import jax

    from easylm.study import pipeline

    scale = pipeline.SCALES[args.scale]
    roots = {seed: f"{args.workdir}/seed={seed}" for seed in scale.seeds}
    plans = {root: pipeline.stages(scale, root, seed) for seed, root in roots.items()}
    if args.dry_run:
        stages = [stage for plan in plans.values() for stage in plan]
        print("\n".join(stage.command for stage in stages if stage.command))
        return
    logging.set_verbosity(logging.WARNING)
    # Programs compiled once serve all stages and seeds, and the next start.
    jax.config.update(
        "jax_compilation_cache_dir", os.path.abspath(f"{args.workdir}/cache")
    )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    for number, (root, plan) in enumerate(plans.items(), 1):
        if len(plans) > 1:
            print(f"seed {number} of {len(plans)}")
        Path(root).mkdir(parents=True, exist_ok=True)
        pipeline.go(plan, root)
        write(args, scale, list(plans)[:number])


def write(args, scale, roots) -> None:
    """The report of everything that is done."""
    from easylm.study import analysis, markdown, report

    command = f"python scripts/world.py --workdir {args.workdir} --scale {args.scale}"
    document = analysis.document(roots, scale, command)
    root = Path(args.workdir)
    (root / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (root / "report.html").write_text(report.html(document))
    images = {}
    for name, picture in report.svgs(document).items():
        (root / f"{name}.svg").write_text(picture)
        images[name] = f"{name}.svg"
    (root / "report.md").write_text(markdown.markdown(document, images))
    print(f"\n{document['lead']}\n\n{root / 'report.html'}")


def _arguments() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--workdir", required=True, metavar="DIR")
    options.add_argument("--scale", default="mini", choices=("mini", "full", "paper"))
    options.add_argument("--dry-run", action="store_true", help="print the commands")
    return options


if __name__ == "__main__":
    explain(main)
