"""Tokenizers: text to ids and back, the same for sentencepiece and tokenizer.json.

Text is split at special tokens here, and the engines (`sentencepiece`, `tokenizers`)
only ever see the ordinary text in between, so what a user types in a chat can never
become a control token.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from etils import epath

from easylm.errors import UserError

FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
)
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>")
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|im_start|>")
Offsets = list[tuple[int, int]]


class Run(NamedTuple):
    """A stretch of text that is encoded by itself."""

    text: str
    control: bool = False  # one special token
    continued: bool = False  # goes on in the middle of a text: gets no space in front


def load(path: str) -> "Tokenizer":
    """Reads a `.model`, a `tokenizer.json` or a checkpoint directory, local or gs://."""
    path = epath.Path(path)
    if not path.exists():
        raise UserError(
            f"no tokenizer at {path}; give a sentencepiece .model, a tokenizer.json or "
            "a directory with one of them (download it first if it is on a hub)"
        )
    if path.is_dir():
        files = _read(path, FILES)
    elif path.name in FILES[:2]:
        files = _read(path.parent, FILES[2:]) | {path.name: path.read_bytes()}
    else:
        kind = "json" if path.name.endswith(".json") else "model"
        files = {f"tokenizer.{kind}": path.read_bytes()}
    if not {"tokenizer.json", "tokenizer.model"} & files.keys():
        raise UserError(f"{path} holds neither tokenizer.json nor tokenizer.model")
    return Tokenizer(files, str(path))


def train(
    texts: Iterable[str], path: str, vocab_size: int, *, special: Sequence[str] = ()
) -> "Tokenizer":
    """Trains a sentencepiece BPE on `texts`, writes it to `path` (.model) and loads it.

    `special` are user-defined symbols: ordinary text that is always one token.
    """
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
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    return load(path)


def stream(tokenizer: "Tokenizer") -> "Detokenizer":
    """Turns ids into text as they come."""
    return Detokenizer(tokenizer)


class Tokenizer:
    """Text to ids and back. `files` holds the tokenizer files, name to bytes."""

    def __init__(self, files: dict[str, bytes], path: str):
        self.files, self.path = files, path
        config = self._json("tokenizer_config.json")
        named = self._json("special_tokens_map.json") | config
        named = {role: _text(named[role]) for role in ROLES if role in named}
        if "tokenizer.json" in files:
            added = _added_tokens(config, {})
            wanted = {*named.values(), *added, *END_OF_TURN, *HEADERS} - {None}
            self._engine = _HuggingFace(files["tokenizer.json"], wanted, path)
        else:
            added = _added_tokens(config, self._json("added_tokens.json"))
            each = config.get("legacy") is not False
            self._engine = _SentencePiece(files["tokenizer.model"], each, path)
        self.specials: dict[str, int] = added | self._engine.specials
        last = max(self.specials.values(), default=-1)
        self.vocab_size: int = max(self._engine.size, last + 1)
        self._name_special_tokens(named)
        self.chat_template: str | None = _chat_template(files, config)

    def __reduce__(self):
        return Tokenizer, (self.files, self.path)

    def encode(self, text: str) -> list[int]:
        """Adds nothing; special-token strings in `text` become their single ids."""
        return [i for run in self.encode_runs([self.split(text)])[0] for i in run]

    def encode_batch(self, texts: Sequence[str]) -> list[tuple[list[int], Offsets]]:
        """Like `encode`, for many texts in parallel, with each token's (start, end).

        The offsets count characters. A character of several tokens belongs to all of
        them (tokenizers) or to the last, the others being empty (sentencepiece).
        """
        rows, batch = [self.split(text) for text in texts], []
        for runs, encoded in zip(rows, self._encode(rows, offsets=True), strict=True):
            ids, offsets, at = [], [], 0
            for run, (run_ids, run_offsets) in zip(runs, encoded, strict=True):
                ids += run_ids
                offsets += [(at + start, at + end) for start, end in run_offsets]
                at += len(run.text)
            batch.append((ids, offsets))
        return batch

    def encode_runs(self, rows: Sequence[Sequence[Run]]) -> list[list[list[int]]]:
        """Ids of every run of every row; only `control` runs give special tokens."""
        encoded = self._encode(rows, offsets=False)
        return [[ids for ids, _ in row] for row in encoded]

    def split(self, text: str) -> list[Run]:
        """Cuts text at special tokens, and at the space that they swallow if any."""
        parts = self._pattern.split(text)
        return [Run(part, bool(i % 2)) for i, part in enumerate(parts) if part]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The inverse of `encode`. An id outside of the vocabulary shows as U+FFFD."""
        text, plain, continued = "", [], False
        for i in [*map(int, ids), None]:
            if i is not None and i not in self._names and 0 <= i < self._engine.size:
                plain.append(i)
                continue
            text += self._decode_plain(plain, continued) if plain else ""
            if i is not None and not (skip_special and i in self._names):
                text += self._names.get(i, "\ufffd")
            plain, continued = [], not self._engine.prefix_each_run
        return text

    def id_of(self, token: str) -> int | None:
        found = self.specials.get(token)
        return self._engine.id_of(token) if found is None else found

    @cached_property
    def fingerprint(self) -> str:
        """Changes when ids or the template do: for caches of tokenized data."""
        digest = hashlib.sha256(self._engine.data)
        state = [self.bos, self.eos, self.pad, self.chat_template]
        state += [sorted(self.specials.items()), self._engine.prefix_each_run]
        digest.update(json.dumps(state).encode())
        return digest.hexdigest()[:16]

    def save(self, folder: str, chat_template: str | None = None) -> None:
        """Writes the files as they were read, so that AutoTokenizer loads them.

        `chat_template` replaces the template, e.g. by the one used in training. A
        generation_config.json that is there already belongs to the model and stays.
        """
        files = dict(self.files)
        if "tokenizer_config.json" not in files:
            files |= self._describe()
        if chat_template is not None:
            config = json.loads(files["tokenizer_config.json"])
            config["chat_template"] = chat_template
            files["tokenizer_config.json"] = _dump(config)
            files["chat_template.jinja"] = chat_template.encode()
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "generation_config.json").exists():
            files.pop("generation_config.json", None)
        for name, data in files.items():
            (folder / name).write_bytes(data)

    # Special tokens.

    def _json(self, name: str) -> dict:
        try:
            return json.loads(self.files.get(name, b"{}"))
        except ValueError as error:
            raise UserError(f"{self.path}/{name} is not JSON: {error}") from error

    def _name_special_tokens(self, named: dict[str, str | None]) -> None:
        stops = self._json("generation_config.json").get("eos_token_id")
        stops = stops if isinstance(stops, list) else [stops]
        stops = [i for i in stops if i is not None]
        eos = [self._find(named, "eos_token"), *stops]
        eos = next((i for i in eos if i in self._names), None)
        if eos is None:
            raise UserError(
                f"{self.path} does not say which token ends a text; add a "
                'tokenizer_config.json with "eos_token"'
            )
        pad = self._find(named, "pad_token")
        ends = [self.specials[name] for name in END_OF_TURN if name in self.specials]
        self.bos: int | None = self._find(named, "bos_token")
        self.eos: int = eos
        self.pad: int = eos if pad is None else pad
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys([eos, *stops, *ends]))
        self.bos_token: str = self._names.get(self.bos, "")
        self.eos_token: str = self._names[eos]

    def _find(self, named: dict[str, str | None], role: str) -> int | None:
        """What the files say, or else what the model says or is usual."""
        names = [named[role]] if role in named else self._engine.roles.get(role, ())
        found = next((self.specials[n] for n in names if n in self.specials), None)
        if found is None and named.get(role) and role != "pad_token":
            raise UserError(
                f"{self.path}: {role} {named[role]!r} is not in the vocabulary; "
                "correct tokenizer_config.json"
            )
        return found

    @cached_property
    def _names(self) -> dict[int, str]:
        return {i: name for name, i in self.specials.items()}

    def _describe(self) -> dict[str, bytes]:
        """What transformers needs beside a lone tokenizer.json or tokenizer.model."""
        ids = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad}
        config = {role: self._names.get(i) for role, i in ids.items()} | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        }
        files = {}
        if "tokenizer.json" not in self.files:
            converted = self._engine.to_tokenizer_json(self.bos_token)
            config["unk_token"] = self._engine.unk
            if converted is None:
                config |= {"tokenizer_class": "LlamaTokenizer", "legacy": True}
            else:
                files["tokenizer.json"] = converted
        return files | {"tokenizer_config.json": _dump(config)}

    # Encoding and decoding of runs.

    @cached_property
    def _pattern(self) -> re.Pattern:
        words = sorted(self.specials, key=len, reverse=True)
        left, right = self._engine.lstrip, self._engine.rstrip
        words = [
            r"\s*" * (w in left) + re.escape(w) + r"\s*" * (w in right) for w in words
        ]
        return re.compile(f"({'|'.join(words)})" if words else r"((?!))")

    def _control_id(self, text: str) -> int:
        found = self.specials.get(text, self.specials.get(text.strip()))
        if found is None:
            raise UserError(
                f"the chat template writes {text!r}, which is no special token of "
                f"{self.path}; use the template tulu, or jinja if it has its own"
            )
        return found

    def _encode(self, rows, offsets: bool):
        """Per row and run (ids, offsets), by two calls of the engine at most."""
        out = [[None] * len(row) for row in rows]
        groups = {True: [], False: []}  # with and without a space in front
        for r, row in enumerate(rows):
            for k, run in enumerate(row):
                if run.control:
                    out[r][k] = [self._control_id(run.text)], [(0, len(run.text))]
                    continue
                start = k == 0 or self._engine.prefix_each_run
                groups[start and not run.continued].append((r, k))
        for prefix, places in groups.items():
            texts = [rows[r][k].text for r, k in places]
            encoded = self._engine.encode(texts, prefix, offsets) if texts else []
            for (r, k), result in zip(places, encoded, strict=True):
                out[r][k] = result
        return out

    def _decode_plain(self, ids: list[int], continued: bool) -> str:
        """Decoding drops the space in front, unless something precedes it."""
        if not continued:
            return self._engine.decode(ids)
        return self._engine.decode(self._letter + ids)[1:]

    @cached_property
    def _letter(self) -> list[int]:
        return self._engine.encode(["a"], prefix=False, offsets=False)[0][0]


class Detokenizer:
    """`push(id)` returns the text that is complete; `finish()` the rest."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._before: list[int] = []  # already shown; decides about spaces
        self._pending: list[int] = []
        self._shown = 0  # characters of the pending ids that were returned

    def push(self, token: int) -> str:
        self._pending.append(int(token))
        text = self._text()
        # Half a character decodes to U+FFFD at the end; the next ids may complete it.
        complete = text.rstrip("\ufffd")
        new = complete[self._shown :]
        self._shown = max(self._shown, len(complete))
        if complete == text:
            self._before, self._pending, self._shown = self._pending, [], 0
        return new

    def finish(self) -> str:
        new = self._text()[self._shown :]
        self._before, self._pending, self._shown = [], [], 0
        return new

    def _text(self) -> str:
        decode = self._tokenizer.decode
        return decode(self._before + self._pending)[len(decode(self._before)) :]


class _SentencePiece:
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


class _HuggingFace:
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


def _read(folder: epath.Path, names: Sequence[str]) -> dict[str, bytes]:
    found = {path.name for path in folder.iterdir()} & set(names)
    return {name: (folder / name).read_bytes() for name in names if name in found}


def _text(token) -> str | None:
    """Special tokens are written as strings or as {"content": string, ...}."""
    return token.get("content") if isinstance(token, dict) else token


def _dump(value: dict) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()


def _added_tokens(config: dict, added: dict) -> dict[str, int]:
    listed = config.get("added_tokens_decoder", {})
    special = {
        t["content"]: int(i) for i, t in listed.items() if t.get("special", True)
    }
    return {k: int(v) for k, v in added.items() if not listed} | special


def _chat_template(files: dict[str, bytes], config: dict) -> str | None:
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode()
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template


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
