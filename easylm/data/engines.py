"""What encodes ordinary text: a sentencepiece model, or a tokenizer.json.

Both have encode, decode, id_of and the same attributes; what they say of special tokens
is read by tokenizer.py, which keeps those away from them.
"""

import io
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np

from easylm.errors import UserError

Offsets = list[tuple[int, int]]


class SentencePiece:
    """A sentencepiece model. Offsets come in bytes and leave in characters."""

    lstrip = rstrip = frozenset()

    def __init__(self, data: bytes, prefix_each_run: bool, path: str):
        self.data = data
        try:
            self._with_prefix = _processor(data)
        except Exception as error:
            raise UserError(
                f"{path} is not a sentencepiece model (Llama 3 calls a tiktoken file "
                "tokenizer.model too; use the Hugging Face tokenizer.json)"
            ) from error
        sp = self._with_prefix
        self.prefix_each_run = prefix_each_run
        self.size = sp.vocab_size()
        self.unk = sp.id_to_piece(sp.unk_id())
        special = [i for i in range(self.size) if sp.is_control(i)] + [sp.unk_id()]
        self.specials = {sp.id_to_piece(i): i for i in special}
        ids = {"bos_token": sp.bos_id(), "eos_token": sp.eos_id()}
        ids["pad_token"] = sp.pad_id()
        self.roles = {r: (sp.id_to_piece(i),) for r, i in ids.items() if i >= 0}

    @cached_property
    def _without_prefix(self):
        model = self._proto()
        model.normalizer_spec.add_dummy_prefix = False
        return _processor(model.SerializeToString())

    def encode(self, texts: list[str], prefix: bool, offsets: bool):
        sp = self._with_prefix if prefix else self._without_prefix
        if not offsets:
            return [(ids, None) for ids in sp.encode(texts, out_type=int)]
        encoded = sp.encode(texts, out_type="serialized_proto")
        return [_parse(text, data) for text, data in zip(texts, encoded, strict=True)]

    def decode(self, ids: list[int]) -> str:
        return self._with_prefix.decode(ids)

    def id_of(self, token: str) -> int | None:
        found = self._with_prefix.piece_to_id(token)
        return found if self._with_prefix.id_to_piece(found) == token else None

    def to_tokenizer_json(self, bos: str) -> bytes | None:
        """The same tokenizer for `tokenizers`; None unless BPE over unchanged text."""
        import tokenizers
        from tokenizers import decoders, models, normalizers, processors

        proto = self._proto()
        rules = proto.normalizer_spec
        if proto.trainer_spec.model_type != 2 or rules.precompiled_charsmap:
            return None  # only BPE over the text as it is
        pieces = proto.pieces
        vocab = {piece.piece: i for i, piece in enumerate(pieces)}
        declared = [p.piece for p in pieces if p.type == 4]  # user-defined symbols
        new = tokenizers.Tokenizer(
            models.BPE(
                vocab=vocab,
                merges=_merges(pieces, vocab),
                unk_token=self.unk,
                fuse_unk=True,
                byte_fallback=proto.trainer_spec.byte_fallback,
                ignore_merges=bool(declared),
            )
        )
        prepend = [normalizers.Prepend("▁")] if rules.add_dummy_prefix else []
        new.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
        strip = [decoders.Strip(" ", 1, 0)] if rules.add_dummy_prefix else []
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        new.decoder = decoders.Sequence([*steps, *strip])
        if declared:
            words = sorted(map(re.escape, declared), key=len, reverse=True)
            whole = tokenizers.Regex("|".join(words))
            new.pre_tokenizer = tokenizers.pre_tokenizers.Split(whole, "isolated")
        new.add_special_tokens(
            [tokenizers.AddedToken(s, normalized=False) for s in self.specials]
        )
        if bos:
            new.post_processor = processors.TemplateProcessing(
                single=[bos, "$A"],
                pair=[bos, "$A", bos, "$B"],
                special_tokens=[(bos, vocab[bos])],
            )
        return new.to_str().encode()

    def _proto(self):
        from sentencepiece import sentencepiece_model_pb2

        return sentencepiece_model_pb2.ModelProto.FromString(self.data)


class HuggingFace:
    """A tokenizer.json. `wanted` are special even where the file does not say so."""

    roles = {  # noqa: RUF012
        "bos_token": ["<s>", "<|begin_of_text|>", "<bos>"],
        "eos_token": ["</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>"],
        "pad_token": ["<pad>", "[PAD]", "<|pad|>"],
    }

    def __init__(self, data: bytes, wanted: set[str], path: str):
        self.data = data
        try:
            spec = json.loads(data)
            for token in spec.get("added_tokens", ()):
                token["special"] |= token["content"] in wanted
            self._spec = spec | {"truncation": None, "padding": None}
            tokenizer = self._build(self._spec)
        except Exception as error:
            raise UserError(f"{path}: broken tokenizer.json: {error}") from error
        added = tokenizer.get_added_tokens_decoder().items()
        special = {token.content: (i, token) for i, token in added if token.special}
        self.specials = {name: i for name, (i, _) in special.items()}
        self.lstrip = {name for name, (_, token) in special.items() if token.lstrip}
        self.rstrip = {name for name, (_, token) in special.items() if token.rstrip}
        self.size = max(tokenizer.get_vocab().values(), default=-1) + 1
        self.prefix_each_run = self._adds_prefix_after_special(tokenizer)
        named = {name: tokenizer.token_to_id(name) for name in sorted(wanted)}
        self.specials |= {name: i for name, i in named.items() if i is not None}
        tokenizer.encode_special_tokens = True  # ordinary text from here on
        self._with_prefix = tokenizer

    @cached_property
    def _without_prefix(self):
        spec = self._spec | {
            "normalizer": _drop_prefix(self._spec.get("normalizer")),
            "pre_tokenizer": _drop_prefix(self._spec.get("pre_tokenizer")),
        }
        if spec == self._spec:
            return self._with_prefix
        tokenizer = self._build(spec)
        tokenizer.encode_special_tokens = True
        return tokenizer

    def encode(self, texts: list[str], prefix: bool, offsets: bool):
        tokenizer = self._with_prefix if prefix else self._without_prefix
        encode = tokenizer.encode_batch if offsets else tokenizer.encode_batch_fast
        encoded = encode(texts, add_special_tokens=False)
        return [(e.ids, e.offsets if offsets else None) for e in encoded]

    def decode(self, ids: list[int]) -> str:
        return self._with_prefix.decode(ids, skip_special_tokens=False)

    def id_of(self, token: str) -> int | None:
        return self._with_prefix.token_to_id(token)

    def _build(self, spec: dict):
        import tokenizers

        return tokenizers.Tokenizer.from_str(json.dumps(spec))

    def _adds_prefix_after_special(self, tokenizer) -> bool:
        texts = [next(iter(self.specials), "") + "a", "a"]
        after, alone = tokenizer.encode_batch(texts, add_special_tokens=False)
        return after.ids[1:] == alone.ids


def train(texts: Iterable[str], vocab_size: int, special: Sequence[str]) -> bytes:
    """A sentencepiece model of byte pairs."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # Line by line, so that no piece holds a newline: it stays the byte <0x0A>.
            sentence_iterator=(line for text in texts for line in text.split("\n")),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            user_defined_symbols=list(special),
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            character_coverage=0.9999,
            max_sentence_length=1 << 20,
            hard_vocab_limit=False,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"sentencepiece cannot train vocab_size={vocab_size} tokens: {reason}; "
            "use at least 300, and more text if it is too little"
        ) from error
    return model.getvalue()


def _processor(data: bytes):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=data)


def _parse(text: str, data: bytes) -> tuple[list[int], Offsets]:
    from sentencepiece import sentencepiece_pb2

    pieces = sentencepiece_pb2.SentencePieceText.FromString(data).pieces
    raw = np.frombuffer(text.encode() + b"\0", np.uint8)
    # Bytes that begin a character, counted up to each byte: byte offset to characters.
    chars = np.cumsum((raw & 0xC0) != 0x80) - 1
    offsets = [(int(chars[p.begin]), int(chars[p.end])) for p in pieces]
    return [p.id for p in pieces], offsets


def _merges(pieces, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to put a learned piece together, best piece first."""
    ranked = []
    for piece in pieces:
        word = piece.piece
        for cut in range(1, len(word) if piece.type == 1 else 0):
            left, right = word[:cut], word[cut:]
            if left in vocab and right in vocab:
                ranked.append((-piece.score, vocab[left], vocab[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]


def _drop_prefix(spec):
    """A normalizer or pre-tokenizer without the space that it puts before a text."""
    if not isinstance(spec, dict):
        return spec
    if spec["type"] == "Prepend":
        return None
    if spec["type"] == "Metaspace":
        return spec | {"prepend_scheme": "never"}
    if spec["type"] == "ByteLevel":
        return spec | {"add_prefix_space": False}
    for part in ("normalizers", "pretokenizers"):
        if part in spec:
            parts = [_drop_prefix(child) for child in spec[part]]
            return spec | {part: [child for child in parts if child is not None]}
    return spec
