"""How fast a machine trains and samples, against its own limits.

    python benchmarks/bench.py [--size small|tiny|1b|8b] [--case NAME[@ROWS] ...]
        [--model KEY=VALUE ...] [--repeats N] [--json FILE]

Sizes (shape.py): `small`, float32, for a CPU: vocabulary 32,000, 8 layers, width 512, 8
heads, 4 key/value heads, MLP 1,408, 8 rows of 512 tokens; `1b`, the shape of Llama 3.2
1B in bfloat16, 8 rows of 4,096 tokens, for one accelerator; `tiny`, to see that all of
it runs. Weights and tokens are random. --model changes what the model computes:
attention=xla, remat=full. Only one device is used.

Training: AdamW, all weights. Reward model and DPO: pairs of two answers that fill a
row, DPO with the reference's forward pass; `dpo_packed`: pairs as long as those of
UltraFeedback, packed. `sampling@64`: 64 prompts at a time, at temperature 1.
`pairs_padded` and `pairs_packed`: a reward model of 2 layers on such pairs, each answer
in a row of 4,096 tokens, or pairs packed into 8,192. `rollouts`: answers of uneven
length, as static batches and refilled. `ppo_iteration`: the answers of `sampling`,
scored by three models and the policy itself, and one update of policy and values.

Training is held against the peak of matrix products: MFU counts what the tokens that
are there need, "of limit" what is computed, padding included. The steps of sampling
(without the prefill, which tokens/s includes) are held against reading every weight and
the cache once. The peaks are the published ones. Those of a CPU are measured beside
every repetition, and the median of the ratios is reported, so that a machine whose
speed drifts gives the same answer. Each case runs in a process of its own: peak memory
and time to the first step are its alone, and one that fails does not end the others.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys

import online
import shape
import training

CASES = {
    f.__name__: f
    for f in (
        *(training.sft_padded, training.sft_lengths_padded),
        *(training.sft_lengths_packed, training.reward_model),
        *(training.dpo, training.dpo_packed),
        *(training.pairs_padded, training.pairs_packed),
        *(online.sampling, online.rollouts, online.ppo_iteration),
    )
}


def main() -> None:
    args = options(__doc__, CASES).parse_args()
    if args.here:
        print(json.dumps(here(args, CASES, machine)))
        return
    run(__file__, args)


def options(about: str, cases) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=about.splitlines()[0])
    made.add_argument("--size", choices=shape.SIZES, default="small")
    made.add_argument("--case", nargs="+", default=[], help=f"NAME[@ROWS]: {[*cases]}")
    made.add_argument("--model", nargs="+", default=[], metavar="KEY=VALUE")
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument("--json", default="", help="also write the results here")
    made.add_argument("--here", default="", help=argparse.SUPPRESS)
    return made


def here(args, cases, machine) -> dict:
    """One case, in this process."""
    name, _, rows = args.here.partition("@")
    shape.use(args.size, int(rows or 0), args.model)
    return machine() if name == "machine" else cases[name](args.repeats)


def run(script: str, args) -> None:
    """Every case in a process of its own; the results so far are always on the disk."""
    report = {"command": " ".join(sys.argv), "size": args.size, "model": args.model}
    report |= _run(script, "machine") | {"cases": {}}
    for name in args.case or shape.SIZES[args.size].cases:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found = _run(script, name)
        one = "seconds" in found or "failed" in found
        report["cases"] |= {name: found} if one else found
        if args.json:
            with open(args.json, "w") as file:
                json.dump(report, file, indent=2)
    print(table(report))


def table(report: dict) -> str:
    """The report as aligned text."""
    columns = {
        "tokens/s": ("tokens_per_second", "{:,.0f}"),
        "useful tok/s": ("useful_tokens_per_second", "{:,.0f}"),
        "pairs/s": ("pairs_per_second", "{:.2f}"),
        "MFU": ("mfu", "{:.1%}"),
        "of limit": ("fraction_of_limit", "{:.1%}"),
        "peak GiB": ("peak_gib", "{:.2f}"),
        "first": ("first_step_seconds", "{:.1f} s"),
        "attention": ("attention", "{}"),
    }
    rows = [("case", *columns)]
    for name, r in report["cases"].items():
        cells = [form.format(r[k]) if k in r else "" for k, form in columns.values()]
        rows.append((name, *cells))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    settings = " ".join([report["size"], *report["model"]])
    about = ", ".join(f"{k} {report[k]}" for k in ("device", "cores", *report["with"]))
    notes = [
        f"{name}: {r.get('failed') or r['note']}"
        for name, r in report["cases"].items()
        if "note" in r or "failed" in r
    ]
    return "\n".join([f"{settings}: {about}", *lines, *notes])


def machine() -> dict:
    import jax

    return {
        "device": _processor() or jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "with": ["jax", "python"],
        "published": {"flops": shape.product_rate(), "bytes": shape.read_rate()},
        "measured": shape.measured(),
    }


def _run(script: str, case: str) -> dict:
    argv = [sys.executable, script, *sys.argv[1:], "--here", case]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if case == "machine":
        raise SystemExit(done.stderr)
    print(done.stderr[-3000:], file=sys.stderr)
    said = done.stderr.splitlines()
    errors = [line for line in said if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return {"failed": (errors or said or [f"exit code {done.returncode}"])[-1][:300]}


def _processor() -> str:
    """The name of the CPU, where the system tells it."""
    if os.environ.get("JAX_PLATFORMS") != "cpu" or not os.path.exists("/proc/cpuinfo"):
        return ""
    with open("/proc/cpuinfo") as file:
        names = [line for line in file if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else ""


if __name__ == "__main__":
    main()
