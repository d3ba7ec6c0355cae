"""What the model says now: completions of a few fixed prompts, to read."""

from easylm.data import chat
from easylm.rollout.sampler import complete


def make(model, tokenizer, template: str, prompts, **options):
    """-> sample(params, key) -> [(prompt, answer)]. Prompts are what a user says."""
    render = chat.get(template)
    ids = [
        chat.encode_chat(
            tokenizer, render, [{"role": "user", "content": p}], generation_prompt=True
        )[0].tolist()
        for p in prompts
    ]

    def sample(params, key) -> list[tuple[str, str]]:
        answers = complete(
            model, params, tokenizer, ids, key, stop_ids=tokenizer.stop_ids, **options
        )
        return [(p, a["text"]) for p, a in zip(prompts, answers, strict=True)]

    return sample
