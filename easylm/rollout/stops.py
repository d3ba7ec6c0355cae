"""Stop strings as an automaton over tokens, so that the compiled loop can stop at one.

A string may end inside a token and begin in an earlier one. The automaton of
Aho and Corasick over bytes knows after each token how much of which string has been
seen; its table over whole tokens is made once on the host.

S states, V vocab. State 0 is the start, the last state says that a string was found.
S is rounded up, so that other strings do not need another program.
"""

import json
import re
from collections.abc import Sequence

import numpy as np

from easylm.errors import UserError

_STATES = 16


def stop_table(tokenizer, strings: Sequence[str], vocab_size: int) -> np.ndarray:
    """int32[S, V]: the state after a token. `vocab_size` is that of the model."""
    if not all(strings):
        raise UserError("a stop string is empty; it would stop before the first token")
    step = _automaton([s.encode() for s in strings])  # [S, 256]
    tokens = token_bytes(tokenizer)[:vocab_size]
    return _over_tokens(step, tokens + [b""] * (vocab_size - len(tokens)))


def cut(tokenizer, ids: Sequence[int], strings: Sequence[str]) -> str:
    """The text of `ids` up to the first stop string."""
    text = tokenizer.decode(ids)
    if not strings:
        return text
    pieces = token_bytes(tokenizer)
    raw = b"".join(pieces[i] for i in ids if 0 <= i < len(pieces))
    found = [at for at in (raw.find(s.encode()) for s in strings) if at >= 0]
    if not found:
        return text
    # Counted from the end, because decoding may drop a space at the start.
    drop = len(raw) - min(found)
    return text.encode()[: max(0, len(text.encode()) - drop)].decode(errors="ignore")


def token_bytes(tokenizer) -> list[bytes]:
    """What each id adds to the text; nothing for special tokens."""
    if tokenizer not in _known:
        _known.clear()  # only the last tokenizer is worth its memory
        _known[tokenizer] = _read(tokenizer)
    return _known[tokenizer]


_known: dict = {}


def _read(tokenizer) -> list[bytes]:
    files, special = tokenizer.files, set(tokenizer.specials.values())
    if "tokenizer.json" in files:
        names, to_bytes = _from_json(json.loads(files["tokenizer.json"]))
    else:
        names, to_bytes = _from_sentencepiece(files["tokenizer.model"])
    size = max([tokenizer.vocab_size, *(i + 1 for i in names)])
    pieces = [b""] * size
    for i, name in names.items():
        if i not in special:
            pieces[i] = to_bytes(name)
    return pieces


def _from_sentencepiece(data: bytes):
    import sentencepiece

    sp = sentencepiece.SentencePieceProcessor(model_proto=data)
    return {i: sp.id_to_piece(i) for i in range(sp.vocab_size())}, _metaspace


def _from_json(spec: dict):
    vocab = spec["model"]["vocab"]
    if isinstance(vocab, list):  # Unigram: [[piece, score], ...]
        names = {i: piece for i, (piece, _) in enumerate(vocab)}
    else:
        names = {i: piece for piece, i in vocab.items()}
    names |= {t["id"]: t["content"] for t in spec.get("added_tokens", ())}
    kinds = set(_kinds(spec.get("decoder")))
    return names, _byte_level if "ByteLevel" in kinds else _metaspace


def _kinds(decoder):
    """The types in a tree of decoders."""
    if isinstance(decoder, dict):
        yield decoder["type"]
        for child in decoder.get("decoders", ()):
            yield from _kinds(child)


def _metaspace(piece: str) -> bytes:
    """▁ is a space, <0x41> is one byte."""
    if byte := re.fullmatch("<0x([0-9A-F]{2})>", piece):
        return bytes([int(byte[1], 16)])
    return piece.replace("▁", " ").encode()


def _alphabet() -> dict[str, int]:
    """Byte-level BPE writes a byte as the character of its number if that one is
    printable; the others, in order, as the characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (b for b in range(256) if b not in set(printable))
    shifted = {chr(256 + n): b for n, b in enumerate(others)}
    return {chr(b): b for b in printable} | shifted


_BYTE_OF = _alphabet()


def _byte_level(piece: str) -> bytes:
    if all(c in _BYTE_OF for c in piece):
        return bytes(_BYTE_OF[c] for c in piece)
    return piece.encode()  # an added token is written as it is


def _automaton(strings: list[bytes]) -> np.ndarray:
    """int32[S, 256]: the state after a byte. A state is a prefix of a string."""
    prefixes = sorted({s[:n] for s in strings for n in range(len(s) + 1)}, key=len)
    # Once a string has been seen nothing longer is looked for.
    prefixes = [p for p in prefixes if not any(s in p for s in strings)]
    number = {p: n for n, p in enumerate(prefixes)}
    states = -(-(len(prefixes) + 1) // _STATES) * _STATES
    step = np.full((states, 256), states - 1, np.int32)
    for prefix, n in number.items():
        for byte in range(256):
            seen = prefix + bytes([byte])
            if any(seen.endswith(s) for s in strings):
                continue
            tails = (seen[k:] for k in range(len(seen) + 1))
            step[n, byte] = next(number[t] for t in tails if t in number)
    return step


def _over_tokens(step: np.ndarray, tokens: list[bytes]) -> np.ndarray:
    """All tokens and all states at once, byte after byte; long tokens first."""
    lengths = np.array([len(t) for t in tokens])
    order = np.argsort(-lengths, kind="stable")
    states = np.tile(np.arange(len(step), dtype=np.int32)[:, None], (1, len(tokens)))
    raw = np.frombuffer(b"".join(tokens), np.uint8)
    starts = np.cumsum(lengths) - lengths
    for at in range(lengths.max(initial=0)):
        longer = order[: np.searchsorted(-lengths[order], -at)]
        byte = raw[starts[longer] + at]
        states[:, longer] = step[states[:, longer], byte[None]]
    return states
