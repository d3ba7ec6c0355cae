"""What the model says now: answers to a few fixed prompts, to read."""

from easylm.rollout.ask import ask
from easylm.training.checkpoint import Loaded


def make(model, tokenizer, template: str, prompts, **options):
    """-> sample(params, key) -> [(prompt, answer)]. Prompts are what a user says."""

    def sample(params, key) -> list[tuple[str, str]]:
        loaded = Loaded(model, params, tokenizer, template, ())
        answers = ask(loaded, prompts, key, **options)
        return [(p, answer) for p, [answer] in zip(prompts, answers, strict=True)]

    return sample
