"""Conversations in, answers out: text on both sides."""

from collections.abc import Sequence

from easylm.data import chat
from easylm.rollout.sampler import complete


def ask(
    loaded, talks: Sequence, key, *, samples: int = 1, **options
) -> list[list[str]]:
    """`samples` answers to each conversation: a question, or messages that end in one.

    `loaded` is what checkpoint.load_for_inference returns; `options` are those of
    rollout/sampler.py (temperature, max_new_tokens, rows, ...).
    """
    said = complete(
        loaded.model,
        loaded.params,
        loaded.tokenizer,
        encoded(loaded, talks),
        key,
        samples=samples,
        **options,
    )
    texts = [one["text"] for one in said]
    return [texts[i : i + samples] for i in range(0, len(texts), samples)]


def encoded(loaded, talks: Sequence) -> list[list[int]]:
    """Ids of the conversations, up to where the answer begins."""
    turns = [
        [{"role": "user", "content": talk}] if isinstance(talk, str) else talk
        for talk in talks
    ]
    render = chat.get(loaded.template)
    found = chat.encode_chats(loaded.tokenizer, render, turns, generation_prompt=True)
    return [ids.tolist() for ids, _ in found]
