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
# The reward model that the others are held against, and who learned from its data.
JUDGE = "judge-medium-fine_grained"
DPO, PPO, GRPO = "dpo-fine_grained", "ppo-medium-fine_grained-general", "grpo"


def label(name: str) -> str:
    """What a stage is called in tables."""
    kind, *rest = name.split("-")
    changed = [f", {part}" for part in rest if "=" in part]
    if kind == "dpo":
        return f"DPO, {KINDS[rest[0]]}{''.join(changed)}"
    if kind == "ppo":
        size, data, prompts = rest[:3]
        judge = f"{size} RM ({KINDS[data]})"
        asked = "" if prompts == "general" else f", {prompts} prompts"
        return f"PPO, {judge}{asked}{''.join(changed)}"
    if kind == "judge":
        return f"{rest[0]}, {KINDS[rest[1]]}"
    plain = {
        BASE: "Base model",
        START: "SFT",
        GRPO: "GRPO, what can be verified",
        f"{GRPO}-random": "GRPO, a coin",
    }
    return plain[name]


def observed(runs: list) -> list[dict]:
    """What was observed in each run, as arrays: {family: {column: float[n]}}."""
    return [
        {
            family: {key: np.array(values) for key, values in columns.items()}
            for family, columns in run["observed"].items()
        }
        for run in runs
    ]
