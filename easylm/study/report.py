"""A document of the study -> one HTML page that needs nothing else to be shown.

A document is a dict of plain values (JSON): title, lead, facts, sections of blocks.
Whatever text it holds is shown as text; only what its author writes (not what models
wrote) may mark `code` and **bold**. A figure is drawn for pages and for phones.
"""

import functools
import re
from importlib import resources

from easylm.errors import UserError
from easylm.study import cells, shapes, svg
from easylm.study.boxes import pipeline
from easylm.study.shapes import MISSING, escape, real, tag

FIGURES = {"plot": svg.plot, "dots": svg.dots, "bars": svg.bars, "pipeline": pipeline}
VERDICTS = {"agrees": "✓", "disagrees": "✗", "cannot tell": "?", "not run": MISSING}
MARGIN = 14  # pixels around a figure in a file of its own
# Nothing is loaded from anywhere, and no script runs, whatever a model wrote.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def html(document) -> str:
    check(document)
    sections = [_section(section) for section in document["sections"]]
    links = [
        tag("li", tag("a", escape(s["title"]), href=f"#{s['id']}"))
        for s in document["sections"]
    ]
    contents = tag("nav", tag("ol", *links), aria_label="Contents")
    main = tag("main", _header(document), *sections)
    body = tag("div", contents, main, class_="page")
    title, css = escape(document["title"]), style()
    return PAGE.format(policy=POLICY, title=title, style=css, body=body)


def svgs(document) -> dict[str, str]:
    """The figures as files of their own, by the id of their block."""
    check(document)
    blocks = [b for section in document["sections"] for b in section["blocks"]]
    return {b["id"]: standalone(b) for b in blocks if b["kind"] in FIGURES}


def standalone(block) -> str:
    """The figure in the colours of the light scheme, on paper with a margin."""
    drawn = FIGURES[block["kind"]](block)
    wide, high = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', drawn).groups())
    frame = {"width": wide + 2 * MARGIN, "height": high + 2 * MARGIN}
    paper = tag("rect", **frame, fill=shapes.PAPER)
    inner = drawn.replace("<svg", f'<svg x="{MARGIN}" y="{MARGIN}"', 1)
    whole = tag("svg", paper, inner, xmlns=shapes.SVG, **frame)
    return re.sub(r"var\(--([\w-]+)\)", lambda m: colours().get(m[1], m[0]), whole)


@functools.cache
def style() -> str:
    return resources.files("easylm.study").joinpath("style.css").read_text("utf-8")


@functools.cache
def colours() -> dict[str, str]:
    """The colours of the light scheme, which style.css states first."""
    return dict(re.findall(r"--([\w-]+): (#\w+);", style().partition("@media")[0]))


def check(document) -> None:
    """Says what cannot be shown, before anything is."""
    seen = set()
    for section in document["sections"]:
        for block in section["blocks"]:
            if block["kind"] not in BLOCKS:
                known = ", ".join(BLOCKS)
                raise UserError(f"no block is a {block['kind']!r}; give one of {known}")
            _check_rows(block)
        for name in [section["id"], *(block["id"] for block in section["blocks"])]:
            if name in seen:
                raise UserError(f"two parts have the id {name!r}; give each its own")
            seen.add(name)


def _check_rows(block):
    spans = sum(span for _, span in block.get("groups") or ())
    if spans and spans != len(block["columns"]):
        raise UserError(
            f"table {block['id']!r}: groups span {spans} columns of"
            f" {len(block['columns'])}; give [name, columns] for all of them"
        )
    for row in block.get("rows", ()):
        cells = len(row.get("cells", ()))
        if block["kind"] == "table" and cells not in (0, len(block["columns"])):
            raise UserError(
                f"table {block['id']!r}, row {row['label']!r}: {cells} cells for"
                f" {len(block['columns'])} columns; give one each, null where missing"
            )
        if block["kind"] == "claims" and row["verdict"] not in VERDICTS:
            raise UserError(
                f"claims {block['id']!r} have a verdict {row['verdict']!r}; give one"
                f" of {', '.join(VERDICTS)}"
            )


def inline(words) -> str:
    """Text with `code` and **bold**."""
    return _marked(escape(words))


def _marked(escaped):
    def mark(found):
        code, bold = found.groups()
        return tag("code", code) if code else tag("strong", _marked(bold))

    return re.sub(r"`([^`]+)`|\*\*(.+?)\*\*", mark, escaped)


def paragraphs(words) -> list[str]:
    return [part.strip() for part in re.split(r"\n\s*\n", words) if part.strip()]


def _header(document):
    facts = [
        tag("div", tag("dt", inline(name)), tag("dd", inline(value)))
        for name, value in document["facts"]
    ]
    title, lead = tag("h1", escape(document["title"])), inline(document["lead"])
    return tag("header", title, tag("p", lead, class_="lead"), tag("dl", *facts))


def _section(section):
    heading = tag("h2", escape(section["title"]))
    text = [tag("p", inline(words)) for words in paragraphs(section["text"])]
    blocks = [BLOCKS[block["kind"]](block) for block in section["blocks"]]
    return tag("section", heading, *text, *blocks, id=section["id"])


def _figure(block, *content):
    title = tag("strong", inline(block["title"]))
    note = f" {inline(block['note'])}" if block.get("note") else ""
    caption = tag("figcaption", title, note)
    return tag("figure", caption, *content, id=block["id"], class_=block["kind"])


def _drawing(block):
    draw = FIGURES[block["kind"]]
    page = tag("div", draw(block), class_="wide")
    phone = tag("div", draw(block, shapes.NARROW), class_="narrow")
    if block["kind"] == "pipeline":
        return _figure(block, page, phone)
    summary = tag("summary", "The numbers")
    table = _scrolled(block, _table(cells.numbers(block)))
    return _figure(block, page, phone, tag("details", summary, table))


def _scrolled(block, content):
    look = {"class_": "scroll", "tabindex": 0, "role": "region"}
    return tag("div", content, **look, aria_label=block["title"])


def _tabled(block):
    legend = []
    if block.get("baseline") is not None:
        name = inline(block["rows"][block["baseline"]]["label"])
        words = (
            tag("span", "better", class_="swatch better"),
            " and ",
            tag("span", "worse", class_="swatch worse"),
            f" than {name}; the stronger the colour, the larger the difference.",
        )
        legend = [tag("p", *words, class_="legend")]
    return _figure(block, _scrolled(block, _table(block)), *legend)


def _table(block):
    shown = cells.shown(block)
    left = [not any(row[k].number for row in shown) for k in range(len(shown[0]))]
    look = ["text" if words else None for words in left]
    heads = [
        tag("th", inline(name), scope="col", class_=kind)
        for name, kind in zip(block["columns"], look, strict=True)
    ]
    over = [
        tag("th", inline(name), scope="colgroup", colspan=span)
        for name, span in block.get("groups") or ()
    ]
    corner = tag("td")
    top = [tag("tr", corner, *over)] if over else []
    bodies = [[]]
    for row, shown_row in zip(block["rows"], shown, strict=True):
        if not row["cells"]:
            bodies.append([])
        bodies[-1].append(_row(row, shown_row, look))
    body = [tag("tbody", *rows) for rows in bodies if rows]
    return tag("table", tag("thead", *top, tag("tr", corner, *heads)), *body)


def _row(row, shown, look):
    label = inline(row["label"])
    if not row["cells"]:
        return tag("tr", tag("th", label, scope="rowgroup", colspan=len(shown) + 1))
    head = tag("th", label, scope="row")
    data = [_cell(cell, kind) for cell, kind in zip(shown, look, strict=True)]
    return tag("tr", head, *data, class_="emphasis" if row.get("emphasis") else None)


def _cell(cell, kind):
    content = tag("strong", escape(cell.text)) if cell.best else escape(cell.text)
    if cell.interval:
        content += tag("small", f"[{cell.interval}]")
    if not cell.change:
        return tag("td", content, class_=kind)
    better = "better" if cell.change > 0 else "worse"
    # The root, so that small differences can be seen beside a large one.
    strength = f"--strength: {100 * abs(cell.change) ** 0.5:.0f}%"
    tip = f"{cell.difference} against the baseline"
    return tag("td", content, class_=better, style=strength, title=tip)


def _samples(block):
    return _figure(block, *map(_prompt, block["prompts"]))


def _prompt(prompt):
    parts = [("Prompt", prompt["prompt"]), ("Reference", prompt["reference"])]
    asked = [
        tag("dt", name) + tag("dd", escape(words), dir="auto", tabindex=0)
        for name, words in parts
        if words
    ]
    family = tag("h3", escape(prompt["family"]))
    cards = [_card(answer) for answer in prompt["answers"]]
    grid = tag("div", *cards, class_="cards")
    return tag("article", family, tag("dl", *asked), grid, class_="prompt")


def _card(answer):
    score, text = answer["score"], answer["text"]
    share = f"--share: {100 * min(max(score, 0), 1):.0f}%" if real(score) else None
    words = f"{score:.2f}" if real(score) else MISSING
    badge = tag("span", words, class_="score", style=share, title="score")
    said = escape(text) if text.strip() else tag("em", "empty")
    body = tag("div", said, class_="said", dir="auto", tabindex=0)
    return tag("section", tag("h4", escape(answer["model"]), badge), body)


def _claims(block):
    names = ("Claim", "Here", "Evidence")
    head = tag("tr", *(tag("th", name, scope="col") for name in names))
    rows = [_claim(row) for row in block["rows"]]
    table = tag("table", tag("thead", head), tag("tbody", *rows))
    return _figure(block, table)


def _claim(row):
    name = row["verdict"]
    mark = tag("span", VERDICTS[name], aria_hidden="true")
    look = f"verdict {name.replace(' ', '-')}"
    source = tag("small", inline(row["source"]))
    return tag(
        "tr",
        tag("th", inline(row["claim"]), source, scope="row"),
        tag("td", tag("span", mark, f" {name}", class_=look)),
        tag("td", inline(row["evidence"])),
    )


BLOCKS = dict.fromkeys(FIGURES, _drawing)
BLOCKS |= {"table": _tabled, "samples": _samples, "claims": _claims}
