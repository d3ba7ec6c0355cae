"""What the stages of all seeds left, read once."""

import json
from pathlib import Path
from typing import NamedTuple

from easylm.study.estimates import Marks, marks
from easylm.study.names import observed
from easylm.study.pipeline import Scale


class Found(NamedTuple):
    """What is finished, by name, with a list over seeds."""

    texts: dict[str, list]  # of policies, and
    seen: dict[str, list]  # what they were observed to do,
    marks: dict[str, Marks]  # how good that was,
    sampled: dict[str, list]  # and how far they went
    judges: dict[str, list]
    scale: Scale


def read(roots, scale) -> Found:
    """Each seed is a folder of its own."""
    runs = {}
    for root in roots:
        for path in sorted(Path(root, "evals").glob("*.json")):
            runs.setdefault(path.stem, []).append(json.loads(path.read_text()))
    judges = {name: runs.pop(name) for name in [*runs] if name.startswith("judge")}
    seen = {name: observed(several) for name, several in runs.items()}
    return Found(
        texts={name: [run["texts"] for run in runs[name]] for name in runs},
        seen=seen,
        marks={name: marks(several) for name, several in seen.items()},
        sampled={
            name: [run["sampled"] for run in several]
            for name, several in runs.items()
            if "sampled" in several[0]
        },
        judges=judges,
        scale=scale,
    )
