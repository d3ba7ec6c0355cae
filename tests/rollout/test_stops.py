"""Stop strings over tokens, against looking for them in the bytes."""

import itertools

import numpy as np
import pytest
import tokenizers as hf

from easylm.data import tokenizer
from easylm.errors import UserError
from easylm.rollout import stops

TEXTS = [
    "the cat sat on the mat. <stop> User: hello\n\nUser: bye",
    "naïve café 猫 🙂 zero​width",
    "  two spaces\n\ttab",
]


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    path = tmp_path_factory.mktemp("sp") / "tokenizer.model"
    return tokenizer.train(TEXTS * 20, str(path), 320)


@pytest.fixture(scope="module")
def byte_fallback(sentencepiece, tmp_path_factory):
    """The same as tokenizer.json, as Llama 2 has it."""
    folder = tmp_path_factory.mktemp("llama2")
    sentencepiece.save(str(folder))
    (folder / "tokenizer.model").unlink(missing_ok=True)
    return tokenizer.load(str(folder))


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    made = hf.ByteLevelBPETokenizer()
    made.train_from_iterator(
        TEXTS * 20,
        vocab_size=330,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    made.add_tokens(["   "])  # an added token that is not special, as OLMo 2 has them
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    made.save(str(path))
    return tokenizer.load(str(path))


@pytest.fixture(params=["sentencepiece", "byte_fallback", "byte_level"])
def any_kind(request):
    return request.getfixturevalue(request.param)


def test_the_bytes_of_the_tokens_are_those_of_the_text(any_kind):
    pieces = stops.token_bytes(any_kind)
    for text in [*TEXTS, "a   b"]:
        raw = b"".join(pieces[i] for i in any_kind.encode(text))
        assert raw.decode() in (text, " " + text)  # sentencepiece puts a space in front


def test_special_tokens_add_nothing(any_kind):
    pieces = stops.token_bytes(any_kind)
    assert pieces[any_kind.eos] == b""
    assert len(pieces) >= any_kind.vocab_size


def test_the_automaton_stops_where_the_string_is_complete(any_kind):
    """Wherever tokens begin and end: also over random tokens."""
    strings = ["at", "he c", "User:", "\n\n", "猫", "sat on the"]
    table = stops.stop_table(any_kind, strings, 400)
    pieces = stops.token_bytes(any_kind) + [b""] * 400
    rng = np.random.default_rng(0)
    rows = [any_kind.encode(text) for text in TEXTS]
    rows += [rng.integers(0, 400, 60).tolist() for _ in range(50)]
    for ids in rows:
        state, raw = 0, b""
        for i in ids:
            state, raw = table[state, i], raw + pieces[i]
            assert (state == len(table) - 1) == any(s.encode() in raw for s in strings)


def test_text_ends_before_the_first_stop_string(any_kind):
    ids = any_kind.encode(TEXTS[0])
    assert stops.cut(any_kind, ids, ["User", "<st"]) == "the cat sat on the mat. "
    assert stops.cut(any_kind, ids, ["absent"]) == any_kind.decode(ids)
    assert stops.cut(any_kind, ids, ["the"]) == ""


def test_overlapping_strings_are_all_found():
    """Over every text of five letters from a small alphabet."""
    strings = [b"aab", b"abab", b"ba"]
    step = stops._automaton(strings)
    for text in itertools.product(b"ab", repeat=6):
        state = 0
        for n, byte in enumerate(text, 1):
            state = step[state, byte]
            seen = any(s in bytes(text[:n]) for s in strings)
            assert (state == len(step) - 1) == seen
            state = state if not seen else len(step) - 1


def test_an_empty_stop_string_is_an_error(sentencepiece):
    with pytest.raises(UserError, match="empty"):
        stops.stop_table(sentencepiece, ["ok", ""], 320)
