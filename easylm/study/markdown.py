"""The same document -> Markdown as GitHub shows it.

A figure is an image where `images` names a file for it, else a table of its numbers.
What models wrote stands in fences that it cannot close.
"""

import re

from easylm.study import cells
from easylm.study.report import FIGURES, VERDICTS, check, paragraphs
from easylm.study.shapes import FORBIDDEN, MISSING, escape, real

MARKS = re.compile(r"(`[^`]+`|\*\*.+?\*\*)")
# What a backslash makes a plain character. An underscore within a word already is.
SPECIAL = re.compile(r"[\\`*~]|(?<!\w)_|_(?!\w)|(?<=\])[(\[:]")


def markdown(document, images=None) -> str:
    """images: block id -> path of its picture, drawn by `report.svgs`."""
    check(document)
    facts = [[_inline(name), _inline(value)] for name, value in document["facts"]]
    parts = [f"# {_plain(document['title'])}", _inline(document["lead"])]
    parts.append(_table(["", ""], facts))
    for section in document["sections"]:
        parts.append(f"## {_plain(section['title'])}")
        parts += map(_inline, paragraphs(section["text"]))
        for block in section["blocks"]:
            parts += [_title(block), _block(block, images or {})]
    return "\n\n".join(parts) + "\n"


def _title(block):
    note = f" {_inline(block['note'])}" if block.get("note") else ""
    return f"**{_plain(block['title'])}**{note}"


def _block(block, images):
    if block["id"] in images:
        path, title = escape(images[block["id"]]), escape(block["title"])
        return f'<img src="{path}" alt="{title}">'
    others = {"pipeline": _pipeline, "samples": _samples, "claims": _claims}
    if block["kind"] in others:
        return others[block["kind"]](block)
    return _numbers(cells.numbers(block) if block["kind"] in FIGURES else block)


def _numbers(block):
    over = [name for name, span in block.get("groups") or () for _ in range(span)]
    over = over or [""] * len(block["columns"])
    columns = zip(over, block["columns"], strict=True)
    heads = [f"{a}: {b}" if a else b for a, b in columns]
    rows = []
    for row, shown in zip(block["rows"], cells.shown(block), strict=True):
        label = _inline(row["label"])
        if not row["cells"]:
            rows.append([f"*{label}*", *[""] * len(heads)])
        else:
            label = f"**{label}**" if row.get("emphasis") else label
            rows.append([label, *map(_cell, shown)])
    return _table(["", *map(_inline, heads)], rows, "---:")


def _cell(cell):
    words = _plain(cell.text)
    words = f"**{words}**" if cell.best else words
    return f"{words} [{cell.interval}]" if cell.interval else words


def _pipeline(block):
    names = {node["id"]: _plain(node["label"]) for node in block["nodes"]}
    lines = []
    for node in block["nodes"]:
        then = ", ".join(names[b] for a, b in block["edges"] if a == node["id"])
        detail = f": {_plain(node['detail'])}" if node.get("detail") else ""
        arrow = f" → {then}" if then else ""
        lines.append(f"- **{names[node['id']]}**{detail}{arrow}")
    return "\n".join(lines)


def _samples(block):
    parts = []
    for prompt in block["prompts"]:
        parts += [f"### {_plain(prompt['family'])}", _fenced(prompt["prompt"])]
        if prompt["reference"]:
            parts += ["Reference:", _fenced(prompt["reference"])]
        for answer in prompt["answers"]:
            score = answer["score"]
            words = f"{score:.2f}" if real(score) else MISSING
            parts.append(f"**{_plain(answer['model'])}**, score {words}:")
            parts.append(_fenced(answer["text"]))
    return "\n\n".join(parts)


def _claims(block):
    rows = [
        [
            _inline(row["claim"]),
            _inline(row["source"]),
            f"{VERDICTS[row['verdict']]} {row['verdict']}",
            _inline(row["evidence"]),
        ]
        for row in block["rows"]
    ]
    return _table(["Claim", "Source", "Here", "Evidence"], rows)


def _table(heads, rows, rest="---"):
    lines = [heads, ["---", *[rest] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(_in_cell, line))} |" for line in lines)


def _in_cell(words):
    return re.sub(r"(?<!\\)\|", r"\\|", words)


def _fenced(text):
    """A code block whose fence is longer than any the text has."""
    text = FORBIDDEN.sub("\ufffd", text.replace("\r", "\n"))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _inline(words):
    """Text on one line, of which `code` and **bold** stay as they are."""
    parts = MARKS.split(" ".join(str(words).split()))
    for k, part in enumerate(parts):
        if k % 2 and part.startswith("**"):
            parts[k] = f"**{_inline(part[2:-2])}**"
        elif k % 2 == 0:
            parts[k] = _plain(part)
    return FORBIDDEN.sub("\ufffd", "".join(parts))


def _plain(words):
    """Text that means only itself: on one line, no tags, no marks."""
    words = FORBIDDEN.sub("\ufffd", re.sub(r"\s+", " ", str(words)))
    words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return SPECIAL.sub(r"\\\g<0>", words)
