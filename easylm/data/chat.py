"""Chat templates: messages to ids, and a mask that is 1 on what the assistant wrote.

A template is a function that returns `Piece`s of text. Text is encoded in stretches
that end where the mask changes. So no token is half scored, and the ids of a prompt are
the first ids of every conversation that goes on from it.
"""

import datetime
import difflib
import functools
import itertools
import json
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jinja2
import jinja2.ext
import jinja2.sandbox
import numpy as np

from easylm.data.tokenizer import Run, Tokenizer
from easylm.errors import UserError

Encoded = tuple[np.ndarray, np.ndarray]  # int32[n] ids, float32[n] mask


class Piece(NamedTuple):
    text: str
    control: bool = False  # a special token that the template writes
    scored: bool = False
    turn: int = -1  # the message that a scored piece belongs to


def get(name: str) -> Callable[..., list[Piece]]:
    """The template of this name: any function here that returns pieces."""
    known = [k for k in globals() if _is_template(k)]
    if name in known:
        return globals()[name]
    close = difflib.get_close_matches(str(name), known, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"no chat template {name!r}; {hint}there are {', '.join(known)}")


def encode_chat(tokenizer: Tokenizer, template, messages, **options) -> Encoded:
    """One conversation; see `encode_chats`."""
    return encode_chats(tokenizer, template, [messages], **options)[0]


def encode_chats(
    tokenizer: Tokenizer,
    template: Callable[..., list[Piece]],
    conversations: Sequence[list[dict]],
    *,
    generation_prompt: bool = False,
    scored: str = "all",
) -> list[Encoded]:
    """Ids and masks of many conversations. scored="last" keeps only the last answer."""
    if scored not in ("all", "last"):
        raise UserError(f"scored is {scored!r}; use 'all' or 'last'")
    rows, turns = [], []
    for messages in conversations:
        _check(messages, answered=not generation_prompt)
        pieces = template(messages, tokenizer, generation_prompt=generation_prompt)
        runs = _runs(pieces)
        rows.append([run for run, _ in runs])
        turns.append([turn for _, turn in runs])
    encoded = tokenizer.encode_runs(rows)
    return [_join(*row, scored) for row in zip(encoded, turns, strict=True)]


def tulu(messages, tokenizer, *, generation_prompt=False) -> list[Piece]:
    """Tulu 2: plain-text headers, the end-of-text token after each answer.

    The newline after an answer is scored, as is the header of an assistant message that
    does not follow one of another role.
    """
    _check_roles(messages, "tulu")
    pieces = _bos(tokenizer)
    for i, message in enumerate(messages):
        text, role = message["content"].strip(), message["role"]
        last = i == len(messages) - 1 and not generation_prompt
        if role != "assistant":
            text = f"<|{role}|>\n{text}\n"
            pieces.append(Piece(text.rstrip() if last else text))
            continue
        pieces.append(_tulu_header(messages, i))
        pieces.append(Piece(text, scored=True, turn=i))
        pieces.append(Piece(tokenizer.eos_token, control=True, scored=True, turn=i))
        pieces += [] if last else [Piece("\n", scored=True, turn=i)]
    return pieces + [_tulu_header(messages, len(messages))] * generation_prompt


def llama3(messages, tokenizer, *, generation_prompt=False) -> list[Piece]:
    """Llama 3: header tokens around the role, content stripped, <|eot_id|>."""
    _check_roles(messages, "llama3")

    def header(role):
        start, end = (
            Piece("<|start_header_id|>", True),
            Piece("<|end_header_id|>", True),
        )
        return [start, Piece(role), end, Piece("\n\n")]

    pieces = _bos(tokenizer)
    for i, message in enumerate(messages):
        scored, text = message["role"] == "assistant", message["content"].strip()
        pieces += header(message["role"])
        pieces += [Piece(text, False, scored, i), Piece("<|eot_id|>", True, scored, i)]
    return pieces + (header("assistant") if generation_prompt else [])


def chatml(messages, tokenizer, *, generation_prompt=False) -> list[Piece]:
    """ChatML as Qwen writes it, without a system prompt of its own and without BOS."""
    _check_roles(messages, "chatml")
    pieces = []
    for i, message in enumerate(messages):
        scored, text = message["role"] == "assistant", message["content"]
        pieces += [Piece("<|im_start|>", True), Piece(message["role"] + "\n")]
        pieces += [Piece(text, False, scored, i), Piece("<|im_end|>", True, scored, i)]
        pieces.append(Piece("\n"))
    if generation_prompt:
        pieces += [Piece("<|im_start|>", True), Piece("assistant\n")]
    return pieces


def jinja(messages, tokenizer, *, generation_prompt=False) -> list[Piece]:
    """The template that came with the checkpoint.

    Answers are what its {% generation %} tags enclose. Without tags, answer i is what
    rendering i messages and a generation prompt lacks of rendering i + 1 messages.
    """
    if not tokenizer.chat_template:
        raise UserError(f"{tokenizer.path} has no chat template; use tulu, say")
    hidden, words = _hide_specials(messages, tokenizer)
    text, spans = _render(tokenizer, hidden, generation_prompt)
    if not spans:
        spans = _find_answers(tokenizer, hidden, text)
    if spans is None and not generation_prompt:
        raise UserError(
            "the checkpoint's chat template renders a turn in another way when more "
            "turns follow, so the answers cannot be found exactly; use another "
            "template (chatml, llama3 or tulu)"
        )
    return list(_cut(text, spans or [], words, tokenizer))


def source(name: str) -> str | None:
    """A template as jinja, to export with a checkpoint; None for `jinja` itself."""
    get(name)
    return _SOURCES.get(name)


_SOURCES = {
    "tulu": """\
{{ bos_token }}
{%- for message in messages %}
{%- set end = '' if loop.last and not add_generation_prompt else '\\n' %}
{%- set text = message['content'] | trim %}
{%- if message['role'] == 'assistant' %}
{{- '<|assistant|>\\n' + text + eos_token + end }}
{%- elif message['role'] in ['system', 'user'] %}
{%- set text = '<|' + message['role'] + '|>\\n' + text %}
{{- text + end if end else text | trim }}
{%- else %}
{{- raise_exception('unknown role ' + message['role']) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>\\n' }}
{%- endif %}""",
    "llama3": """\
{{ bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}""",
    "chatml": """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}""",
}


def _is_template(name: str) -> bool:
    made = getattr(globals()[name], "__annotations__", {}).get("return")
    return not name.startswith("_") and made == list[Piece]


# From pieces to ids.


def _runs(pieces: list[Piece]) -> list[tuple[Run, int | None]]:
    """Joins text between control tokens and cuts it where the scored turn changes."""
    runs = []
    for text, control, scored, turn in (piece for piece in pieces if piece.text):
        key = turn if scored else None
        continued = bool(runs) and not runs[-1][0].control and not control
        if continued and runs[-1][1] == key:
            last = runs.pop()[0]
            runs.append((last._replace(text=last.text + text), key))
        else:
            runs.append((Run(text, control, continued), key))
    return runs


def _join(encoded: list[list[int]], turns: list[int | None], scored: str) -> Encoded:
    answers = {turn for turn in turns if turn is not None}
    answers = {max(answers)} if scored == "last" and answers else answers
    counts = [len(run) for run in encoded]
    ids = np.fromiter(itertools.chain(*encoded), np.int32, sum(counts))
    kept = np.array([turn in answers for turn in turns], np.float32)
    return ids, np.repeat(kept, counts)


def _bos(tokenizer) -> list[Piece]:
    return [Piece(tokenizer.bos_token, control=True)] if tokenizer.bos_token else []


def _tulu_header(messages, i: int) -> Piece:
    """Counts to the turn before it: scored where nothing else was to be predicted."""
    scored = i == 0 or messages[i - 1]["role"] == "assistant"
    return Piece("<|assistant|>\n", scored=scored, turn=i - 1)


# Bad input.


def _check(messages, answered: bool) -> None:
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise UserError(
            'messages is not a list of {"role": ..., "content": ...}; it is '
            f"{str(messages)[:60]!r}"
        )
    if not messages:
        raise UserError("messages is empty; a conversation has at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise UserError(
                f"messages[{i}].role is {message.get('role')!r}; it must be a string"
            )
        text = message.get("content")
        if not isinstance(text, str) and not message.get("tool_calls"):
            kind = type(text).__name__
            raise UserError(f"messages[{i}].content is {kind}; it must be a string")
    if answered and all(m["role"] != "assistant" for m in messages):
        raise UserError("messages has no assistant turn, so there is nothing to learn")


def _check_roles(messages, template: str) -> None:
    for i, message in enumerate(messages):
        if message["role"] not in ("system", "user", "assistant"):
            raise UserError(
                f"messages[{i}].role is {message['role']!r}; {template} knows system, "
                "user and assistant (the template jinja passes others on)"
            )
        if not isinstance(message["content"], str):
            raise UserError(
                f"messages[{i}].content is not a string, as {template} needs"
            )


# The checkpoint's own template.


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %} encloses what the assistant wrote."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        marks = jinja2.nodes.Name("generation_marks", "load")
        call = self.call_method("_mark", [marks])
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _mark(self, marks, caller):
        return marks[0] + caller() + marks[1]


@functools.lru_cache(16)
def _compile(template: str) -> jinja2.Template:
    def refuse(message):
        raise jinja2.TemplateError(message)

    def dump(value, indent=None, **options):
        return json.dumps(value, ensure_ascii=False, indent=indent, **options)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[jinja2.ext.loopcontrols, _Generation],
    )
    environment.filters["tojson"] = dump
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda f: datetime.datetime.now().strftime(f)
    return environment.from_string(template)


def _render(tokenizer, messages, generation_prompt) -> tuple[str, list]:
    """The text, and (start, end, turn) of each {% generation %} block."""
    tokens = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    marks = _unused(_strings(messages) + tokenizer.chat_template, 2)
    try:
        marked = _compile(tokenizer.chat_template).render(
            messages=messages,
            add_generation_prompt=generation_prompt,
            generation_marks=marks,
            **{name: token for name, token in tokens.items() if token},
        )
    except (jinja2.TemplateError, TypeError, LookupError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the checkpoint's chat template fails: {reason}") from error
    parts = re.split(f"[{marks}]", marked)  # outside, inside, outside, ...
    ends = list(itertools.accumulate(map(len, parts)))
    spans = [(ends[k - 1], ends[k], k) for k in range(1, len(parts), 2)]
    return "".join(parts), spans


def _find_answers(tokenizer, messages, text: str) -> list | None:
    """Spans by rendering prefixes; None if some prefix does not begin the whole."""
    stops = tuple(k for k, i in tokenizer.specials.items() if i in tokenizer.stop_ids)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        try:
            before, _ = _render(tokenizer, messages[:i], True)
            after, _ = _render(tokenizer, messages[: i + 1], False)
        except UserError:
            return None
        if not (after.startswith(before) and text.startswith(after)):
            return None
        # An answer ends with its end-of-turn token, not with the newline after it.
        answer = after[len(before) :]
        answer = answer.rstrip() if answer.rstrip().endswith(stops) else answer
        spans.append((len(before), len(before) + len(answer), i))
    return spans


def _cut(text: str, spans: list, words: dict[int, str], tokenizer):
    """Pieces of a rendered text; `words` are the special strings hidden in it."""
    at = 0
    edges = sorted({edge for start, end, _ in spans for edge in (start, end)})
    for run in tokenizer.split(text):
        stop = at + len(run.text)
        inside = [] if run.control else [edge for edge in edges if at < edge < stop]
        for start, end in itertools.pairwise([at, *inside, stop]):
            turn = next((turn for a, b, turn in spans if a <= start < b), None)
            part = text[start:end].translate(words)
            yield Piece(part, run.control, turn is not None, turn or 0)
        at = stop


def _hide_specials(messages, tokenizer) -> tuple[list, dict[int, str]]:
    """Puts an unused character for every special string that somebody typed."""
    typed = _strings(messages)
    found = sorted((s for s in tokenizer.specials if s in typed), key=len, reverse=True)
    marks = _unused(typed + tokenizer.chat_template, len(found))

    def hide(value):
        if isinstance(value, dict):
            return {key: hide(item) for key, item in value.items()}
        if isinstance(value, list):
            return [hide(item) for item in value]
        if isinstance(value, str):
            for mark, word in zip(marks, found, strict=True):
                value = value.replace(word, mark)
        return value

    words = {ord(mark): word for mark, word in zip(marks, found, strict=True)}
    return (hide(messages) if words else messages), words


def _strings(value) -> str:
    """Every string in a tree of dicts and lists."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return "\n".join(map(_strings, value))
    return value if isinstance(value, str) else ""


def _unused(text: str, count: int) -> str:
    """Private-use characters that do not occur in the text."""
    used = set(text)
    private = (c for c in map(chr, range(0xF0000, 0xFFFFE)) if c not in used)
    return "".join(itertools.islice(private, count))
