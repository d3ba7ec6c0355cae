"""What stages are called in reports, and how what they left is read."""

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
    kind, _, rest = name.partition("-")
    if kind == "dpo":
        return f"DPO, {KINDS[rest]}"
    if kind == "ppo":
        size, data, prompts = rest.split("-")
        return f"PPO, {size} reward model ({KINDS[data]}), {prompts} prompts"
    if kind == "judge":
        size, data = rest.split("-")
        return f"{size}, {KINDS[data]}"
    return {BASE: "Base model", START: "SFT", "grpo": "GRPO, what can be verified"}[
        name
    ]


def observed(policies, name) -> list:
    return [run["observed"] for run in policies.get(name, ())]


def right(run) -> list[float]:
    return [x for family in run["right"].values() for x in family]
