"""Tokenizers: text to ids and back, the same for sentencepiece and tokenizer.json.

Text is split at special tokens here, and the engines (`sentencepiece`, `tokenizers`)
only ever see the ordinary text in between, so what a user types in a chat can never
become a control token.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

from etils import epath

from easylm.data import engines
from easylm.data.engines import Offsets
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
    model = engines.train(texts, vocab_size, special)
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model)
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
            self._engine = engines.HuggingFace(files["tokenizer.json"], wanted, path)
        else:
            added = _added_tokens(config, self._json("added_tokens.json"))
            each = config.get("legacy") is not False
            self._engine = engines.SentencePiece(files["tokenizer.model"], each, path)
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
