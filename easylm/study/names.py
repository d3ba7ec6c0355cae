"""What stages are called in reports, and how what they left is read."""

import numpy as np

KINDS = {
    "fine_grained": "fine-grained ratings",
    "overall": "one overall rating",
    "crowd": "noisy crowd",
    "web": "votes that like length",
    "arena": "users who want any answer",
    "experts": "few experts",
    "mix": "a mix of four",
}
BASE, START = "pretrain-medium", "sft-medium"


def label(name: str) -> str:
    """What a stage is called in tables."""
    kind, *rest = name.split("-")
    changed = [f", {part}" for part in rest if "=" in part]
    if kind == "dpo":
        return f"DPO, {KINDS[rest[0]]}{''.join(changed)}"
    if kind == "ppo":
        size, data, prompts = rest[:3]
        judge = f"{size} reward model ({KINDS[data]})"
        return f"PPO, {judge}, {prompts} prompts{''.join(changed)}"
    if kind == "judge":
        return f"{rest[0]}, {KINDS[rest[1]]}"
    return {BASE: "Base model", START: "SFT", "grpo": "GRPO, what can be verified"}[
        name
    ]


def observed(policies, name) -> list[dict]:
    """What a policy was observed to do, one per seed: {family: {column: float[n]}}."""
    return [
        {
            family: {key: np.array(values) for key, values in columns.items()}
            for family, columns in run["observed"].items()
        }
        for run in policies.get(name, ())
    ]


def right(run) -> list[float]:
    return [x for family in run["right"].values() for x in family]
