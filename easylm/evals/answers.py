"""Answers to the last question of conversations, and how many are the reference."""

from collections.abc import Sequence

import jax

from easylm.data import chat
from easylm.rollout.sampler import complete


def answer(
    loaded, params, conversations: Sequence[list[dict]], *, max_new_tokens: int
) -> list[str]:
    """What a model says where the last message of each conversation stands; greedy.

    `loaded` (checkpoint.Loaded) gives model, tokenizer and template. All conversations
    run as one batch.
    """
    encoded = chat.encode_chats(
        loaded.tokenizer,
        chat.get(loaded.template),
        [messages[:-1] for messages in conversations],
        generation_prompt=True,
    )
    said = complete(
        loaded.model,
        params,
        loaded.tokenizer,
        [ids.tolist() for ids, _ in encoded],
        jax.random.key(0),
        max_new_tokens=max_new_tokens,
        temperature=0.0,
    )
    return [one["text"].strip() for one in said]


def exact(answers: Sequence[str], conversations: Sequence[list[dict]]) -> list[bool]:
    """Where the answer is the last message of the conversation, to the letter."""
    pairs = zip(answers, conversations, strict=True)
    return [said == messages[-1]["content"] for said, messages in pairs]
