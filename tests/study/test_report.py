"""The page and its Markdown: every number, no tag of a model, points in their place."""

import copy
import html.parser
import itertools
import math
import re
import xml.etree.ElementTree as xml

import pytest

from easylm.errors import UserError
from easylm.study import report, shapes, svg
from easylm.study.markdown import markdown

NAN, DASH = math.nan, shapes.MISSING
HOSTILE = (
    '</div><script>alert("1")</script> & `x` ```\n```\n**b** \x00\ud800' + "W" * 400
)
VOID = {"meta", "br", "img"}

TABLE = {
    "kind": "table",
    "id": "scores",
    "title": "Scores",
    "note": "Of `three` seeds.",
    "columns": ["maths", "loss", "size"],
    "groups": [["quality", 2], ["", 1]],
    "rows": [
        {
            "label": "SFT",
            "cells": [{"mean": 0.573, "low": 0.55, "high": 0.6}, 1.25, "4 M"],
        },
        {"label": "Human", "cells": []},
        {
            "label": "DPO",
            "cells": [{"mean": 0.61, "low": None, "high": None}, 0.5, None],
            "emphasis": True,
        },
        {"label": "PPO", "cells": [{"mean": NAN, "low": NAN, "high": NAN}, 2.0, "5"]},
    ],
    "higher_is_better": [True, False, None],
    "baseline": 0,
}
PLOT = {
    "kind": "plot",
    "id": "curves",
    "title": "Curves",
    "note": "",
    "x": {"label": "steps", "log": False},
    "y": {"label": "accuracy, the mean over all families of all questions"},
    "style": "line",
    "series": [
        {
            "label": name,
            "points": [
                {"x": x, "y": x / 9 + up, "low": x / 9 - 0.1, "high": x / 9 + 0.2}
                for x in range(7)
            ],
        }
        for name, up in (("DPO", 0.01), ("PPO & more", 0.02), ("Best of 16", 0.0))
    ],
}
DOTS = {
    "kind": "dots",
    "id": "effects",
    "title": "Effects",
    "note": "",
    "x": {"label": "points"},
    "zero": 0,
    "rows": [
        {
            "label": "a source of preferences with a name too long for any phone",
            "points": [
                {"series": "DPO", "mean": 0.02, "low": -0.01, "high": 0.05},
                {"series": "PPO", "mean": NAN, "low": None, "high": None},
            ],
        },
        {"label": "b", "points": [{"series": "PPO", "mean": 0.5, "low": 0, "high": 1}]},
    ],
}
BARS = {
    "kind": "bars",
    "id": "cost",
    "title": "Cost",
    "note": "",
    "x": {"label": "minutes"},
    "rows": [
        {"label": "SFT", "value": 12.5, "text": "12 min 30 s"},
        {"label": "DPO", "value": 50.0, "text": None},
        {"label": "PPO", "value": None, "text": None},
    ],
}
PIPELINE = {
    "kind": "pipeline",
    "id": "stages",
    "title": "Stages",
    "nodes": [
        {"id": "a", "label": "Data", "detail": "x" * 90, "column": 0, "row": 0},
        {"id": "b", "label": "SFT", "detail": "", "column": 1, "row": 0},
        {"id": "c", "label": "PPO", "detail": "long words", "column": 2, "row": 0},
        {"id": "d", "label": "Rewards", "detail": "two", "column": 2, "row": 1},
    ],
    "edges": [["a", "b"], ["b", "c"], ["a", "c"], ["d", "c"], ["c", "a"]],
}
SAMPLES = {
    "kind": "samples",
    "id": "said",
    "title": "Samples",
    "prompts": [
        {
            "family": "hostile",
            "prompt": HOSTILE,
            "reference": "42",
            "answers": [
                {"model": "SFT", "text": HOSTILE, "score": 0.25},
                {"model": "<b>PPO</b>", "text": "", "score": NAN},
            ],
        }
    ],
}
CLAIMS = {
    "kind": "claims",
    "id": "claims",
    "title": "Claims",
    "rows": [
        {"claim": f"claim {k}", "source": "Table 1", "verdict": v, "evidence": "a | b"}
        for k, v in enumerate(report.VERDICTS)
    ],
}
EVERY = [TABLE, PLOT, DOTS, BARS, PIPELINE, SAMPLES, CLAIMS]
FIGURES = [PLOT, PLOT | {"style": "scatter"}, DOTS, BARS, PIPELINE]
WIDTHS = [shapes.WIDE, shapes.NARROW]


def document(*blocks, **changes):
    section = {"id": "all", "title": "All <&>", "text": "One.\n\n`Two` **b**."}
    section["blocks"] = list(blocks)
    facts = [["Command", "`make <all>`"], ["Seeds", 3]]
    whole = {"title": "A study", "lead": "It **works**.", "facts": facts}
    return whole | {"sections": [section]} | changes


class Page(html.parser.HTMLParser):
    """The texts of a page by tag; fails where tags do not nest."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append((tag, attributes, []))

    def handle_endtag(self, tag):
        name, attributes, texts = self.open.pop()
        assert name == tag
        self.texts.append((tag, attributes, "".join(texts)))

    def handle_data(self, data):
        for _, _, texts in self.open:
            texts.append(data)

    def all(self, *names):
        return [text for tag, _, text in self.texts if tag in names]


def drawn(block, width=shapes.WIDE):
    return xml.fromstring(report.FIGURES[block["kind"]](block, width))


def parts(root, name):
    return [part for part in root.iter() if part.tag.endswith("}" + name)]


def markers(root):
    """{tooltip: (x, y)}"""
    found = {}
    for path in parts(root, "path"):
        if len(path) and "transform" in path.attrib:
            place = re.findall(r"[-\d.]+", path.get("transform"))
            found[path[0].text] = tuple(map(float, place))
    return found


def test_a_page_of_every_kind_of_block_nests_its_tags_and_needs_nothing_else():
    source = report.html(document(*EVERY))
    page = Page(source)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) == 1 + len(EVERY)
    for _, attributes in page.tags:
        for key in ("src", "href"):
            assert attributes.get(key, "#").startswith("#")
    assert "url(" not in source and "@import" not in source


def test_text_of_a_model_is_text():
    page = Page(report.html(document(*EVERY)))
    assert not {"script", "b"} & {tag for tag, _ in page.tags}
    plain = HOSTILE.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    said = [text for _, look, text in page.texts if look.get("class") == "said"]
    assert said == [plain, "empty"]


def test_what_is_written_can_be_encoded():
    whole = document(*EVERY, title=HOSTILE, lead=HOSTILE)
    whole["sections"][0]["blocks"][1] = PLOT | {"title": HOSTILE}
    texts = [report.html(whole), markdown(whole), *report.svgs(whole).values()]
    assert all("\x00" not in text for text in texts) and "".join(texts).encode()


def test_markdown_shows_text_of_a_model_between_fences_it_cannot_close():
    text = markdown(document(SAMPLES))
    assert text.count("````\n" + HOSTILE[:9]) == 2
    outside = re.sub(r"(?ms)^(`{3,})\n.*?^\1$", "", text)
    assert "<script" not in outside and "W" * 9 not in outside
    assert f"**&lt;b&gt;PPO&lt;/b&gt;**, score {DASH}:" in outside


def test_every_number_of_a_table_is_on_the_page_and_a_missing_one_is_a_dash():
    page = Page(report.html(document(TABLE)))
    cells = [text for text in page.all("td") if text]
    first, second, third = cells[:3], cells[3:6], cells[6:]
    assert first == ["0.573[0.550, 0.600]", "1.25", "4 M"]
    assert second == ["0.610", "0.50", DASH]
    assert third == [DASH, "2.00", "5"]


@pytest.mark.parametrize("write", [report.html, markdown])
def test_nan_is_never_written(write):
    assert not re.search(r"\b(nan|None|inf)\b", write(document(*EVERY)))


def test_a_difference_that_rounds_to_nothing_has_no_sign():
    say = shapes.formatter([-0.0001, 0.1], percent=True)
    assert (say(-0.0001), say(-0.01)) == ("0.0", f"{shapes.MINUS}1.0")


def test_percent_writes_fractions_as_57_3():
    page = Page(report.html(document(TABLE | {"percent": True})))
    assert "57.3[55.0, 60.0]" in page.all("td")


@pytest.mark.parametrize(
    "higher, best",
    [
        (True, ["0.610", "2.00"]),
        (False, ["0.573", "0.50"]),
        (None, []),
        ([True, False, None], ["0.610", "0.50"]),
    ],
)
def test_the_best_of_each_column_is_bold(higher, best):
    source = report.html(document(TABLE | {"higher_is_better": higher}))
    assert re.findall("<td[^>]*><strong>([^<]*)", source) == best


def test_means_that_read_the_same_are_both_the_best():
    rows = [{"label": str(x), "cells": [x]} for x in (0.5730, 0.5731, 0.4)]
    table = TABLE | {"columns": ["a"], "rows": rows, "groups": None}
    table |= {"higher_is_better": True}
    source = report.html(document(table))
    assert re.findall("<td[^>]*><strong>([^<]*)", source) == ["0.573", "0.573"]


def test_cells_are_green_where_better_than_the_baseline_also_if_that_is_lower():
    page = Page(report.html(document(TABLE)))
    looks = {text: look for tag, look, text in page.texts if tag == "td"}
    assert looks["0.610"]["class"] == looks["0.50"]["class"] == "better"
    assert looks["2.00"]["class"] == "worse"
    assert looks["2.00"]["title"].startswith("0.75 ")
    assert "class" not in looks["1.25"] or not looks["1.25"]["class"]


def test_colours_of_fractions_are_of_one_strength_for_the_same_difference():
    rows = [{"label": "a", "cells": [0.5, 0.5]}, {"label": "b", "cells": [0.51, 0.9]}]
    table = TABLE | {"columns": ["x", "y"], "rows": rows, "groups": None}
    table |= {"higher_is_better": True}
    for percent, expected in ((False, ["100%", "100%"]), (True, ["16%", "100%"])):
        source = report.html(document(table | {"percent": percent}))
        assert re.findall(r"--strength: (\d+%)\"", source) == expected


def test_the_markdown_table_has_the_cells_of_the_page():
    page = Page(report.html(document(TABLE)))
    lines = re.findall(r"^\|.*\|$", markdown(document(TABLE)), re.M)
    rows = [[c.strip() for c in line[1:-1].split(" | ")] for line in lines]
    there = [c for row in rows for c in row[1:] if row[0] in ("SFT", "**DPO**", "PPO")]
    plain = [cell.replace("*", "").replace(" [", "[") for cell in there]
    assert plain == [text for text in page.all("td") if text]
    assert "**0.610**" in there and "**0.50**" in there
    assert any("quality: maths" in line for line in lines)


def test_markdown_shows_a_figure_as_its_picture_or_as_its_numbers():
    text = markdown(document(PLOT, DOTS), {"curves": "a&b.svg"})
    assert '<img src="a&amp;b.svg" alt="Curves">' in text and "0.02 [" not in text
    assert f"| b | {DASH} | 0.50 [0.00, 1.00] |" in text


def test_cells_of_markdown_cannot_end_their_cell():
    assert "a \\| b" in markdown(document(CLAIMS))


POINTS = [(10, -0.4), (200, 0.3), (3000, 1.1), (45000, 0.25)]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("log", [False, True])
def test_points_are_where_the_ticks_say_their_numbers_are(width, log):
    points = [{"x": x, "y": y, "low": y, "high": y} for x, y in POINTS]
    block = PLOT | {"series": [{"label": "a", "points": points}], "style": "scatter"}
    root = drawn(block | {"x": {"label": "steps", "log": log}}, width)
    texts = [t for t in parts(root, "text") if re.match(shapes.MINUS + r"?\d", t.text)]
    ticks = [(number(t.text), float(t.get("x")), float(t.get("y"))) for t in texts]
    bottom, scale = max(y for _, _, y in ticks), math.log10 if log else float
    across = [(scale(value), x) for value, x, y in ticks if y == bottom]
    up = [(value, y - 4.5) for value, _, y in ticks if y != bottom]
    for (x, y), place in zip(POINTS, markers(root).values(), strict=True):
        assert place[0] == pytest.approx(line(across, scale(x)), abs=0.02)
        assert place[1] == pytest.approx(line(up, y), abs=0.02)


def test_a_series_of_points_among_lines_has_neither_line_nor_band():
    first, *others = PLOT["series"]
    block = PLOT | {"series": [first | {"style": "scatter"}, *others]}
    lines, points = (drawn(one) for one in (PLOT, block))
    bands = [len(parts(root, "polygon")) for root in (lines, points)]
    assert bands == [len(others) + 1, len(others)]
    dashed = lambda root: [p.get("stroke-width") for p in parts(root, "polyline")]
    # Of its line and its legend, whose names now stand above, whiskers take the place.
    assert dashed(points).count("2.2") == dashed(lines).count("2.2") + 7
    assert len(markers(points)) == len(markers(lines)) == 7 * len(PLOT["series"])


def number(text):
    text = text.replace(shapes.MINUS, "-")
    return float(text[:-1]) * 1000 if text.endswith("k") else float(text)


def line(pairs, x):
    """The y at x on the line through the first and the last pair."""
    (x0, y0), (x1, y1) = pairs[0], pairs[-1]
    return y0 + (x - x0) / (x1 - x0) * (y1 - y0)


@pytest.mark.parametrize(
    "low, high, log, ticks",
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-3, 52, False, [0, 10, 20, 30, 40, 50]),
        (0.5, 300, True, [1, 3, 10, 30, 100, 300]),
        (3, 9, True, [3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_ticks_are_round_numbers(low, high, log, ticks):
    assert shapes.Scale(low, high, 0, 100, log).ticks(6) == ticks


def test_missing_points_are_not_drawn_and_break_their_line():
    points = [{"x": x, "y": NAN if x == 3 else x} for x in range(7)]
    block = PLOT | {"series": [{"label": "a", "points": points}]}
    lines = [p.get("points").split() for p in parts(drawn(block), "polyline")]
    assert [len(run) for run in lines] == [3, 3]
    nothing = drawn(PLOT | {"series": [{"label": "a", "points": points[3:4]}]})
    assert parts(nothing, "text")[0].text == "No numbers yet."


def test_dots_and_bars_are_as_long_as_their_numbers():
    places = {tip.split(":")[0]: at for tip, at in markers(drawn(DOTS)).items()}
    assert [name.rpartition(", ")[2] for name in places] == ["DPO", "PPO"]
    bars = [float(rect.get("width")) for rect in parts(drawn(BARS), "rect")]
    assert bars[0] == pytest.approx(bars[1] / 4, abs=0.01) and bars[2] == 0


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("block", FIGURES, ids=lambda b: b["id"])
def test_no_text_leaves_its_figure_or_covers_another(block, width):
    root, boxes = drawn(block, width), []
    for part in parts(root, "text"):
        x, y, wide = float(part.get("x")), float(part.get("y")), measure(part)
        left = x - wide * {"middle": 0.5, "end": 1}.get(part.get("text-anchor"), 0)
        boxes.append((left, y - 9, left + wide, y + 2))
        assert left >= -1 and left + wide <= float(root.get("width")) + 1, part.text
        assert y + 2 <= float(root.get("height"))
    for a, b in itertools.combinations(boxes, 2):
        assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]


def measure(part):
    """An average font; the figures reckon with a wider one."""
    return 0.5 * shapes.SIZE * len(part.text)


@pytest.mark.parametrize("width", WIDTHS)
def test_names_at_the_ends_of_lines_keep_apart(width):
    series = [PLOT["series"][0] | {"label": f"line {k}"} for k in range(7)]
    root = drawn(PLOT | {"series": series}, width)
    names = [t for t in parts(root, "text") if t.text.startswith("line")]
    places = [(float(t.get("x")), float(t.get("y"))) for t in names]
    assert len(places) == 7
    for (x, y), (x2, y2) in itertools.combinations(places, 2):
        assert abs(y - y2) > 15 or abs(x - x2) > 30


def test_arrows_go_round_the_boxes_between():
    """From Data to PPO, past SFT, which lies in the middle of the straight way."""
    arrow = parts(drawn(PIPELINE), "path")[2].get("d")
    numbers = iter(map(float, re.findall(r"[\d.-]+", arrow)))
    box = parts(drawn(PIPELINE), "rect")[1]
    x, y, wide, high = (float(box.get(k)) for k in ("x", "y", "width", "height"))
    past = [b for a, b in zip(numbers, numbers, strict=True) if x <= a <= x + wide]
    assert past and all(not y <= b <= y + high for b in past)


def test_figures_as_files_have_their_own_colours_and_describe_themselves():
    files = report.svgs(document(*EVERY))
    assert list(files) == ["curves", "effects", "cost", "stages"]
    for text in files.values():
        root = xml.fromstring(text)
        assert "var(" not in text and report.colours()["paper"] in text
        assert parts(root, "title")[0].text and parts(root, "desc")[0].text


def test_text_and_lines_stand_out_in_both_schemes():
    light, dark = report.style().split("@media", 2)[:2]
    for scheme in (light, dark):
        colours = dict(re.findall(r"--([\w-]+): (#\w+);", scheme))
        assert colours.keys() == report.colours().keys()
        for ground in ("paper", "card"):
            for name in ("ink", "muted", "accent"):
                assert contrast(colours[name], colours[ground]) > 4.5
        for k in range(len(svg.MARKERS)):
            assert contrast(colours[f"series-{k + 1}"], colours["paper"]) > 3


def contrast(a, b):
    """WCAG 2: the ratio of the luminances, each + 0.05."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour):
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def broken(block, *path, value):
    """The block with another value at the path."""
    block = whole = copy.deepcopy(block)
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = value
    return whole


@pytest.mark.parametrize(
    "blocks, message",
    [
        ([PLOT | {"kind": "pie"}], "no block is a 'pie'; give one of plot, dots"),
        ([PLOT, PLOT], "two parts have the id 'curves'"),
        ([broken(TABLE, "rows", 0, "cells", value=[1])], "row 'SFT': 1 cells for 3"),
        ([TABLE | {"groups": [["a", 2]]}], "groups span 2 columns of 3"),
        ([broken(CLAIMS, "rows", 0, "verdict", value="yes")], "a verdict 'yes'; give"),
        ([broken(PLOT, "x", "log", value=True)], "x = 0 on a logarithmic axis"),
        ([broken(PIPELINE, "edges", 0, value=["a", "z"])], "an edge at 'z'"),
    ],
)
def test_a_block_that_cannot_be_shown_says_why(blocks, message):
    with pytest.raises(UserError, match=message):
        report.html(document(*blocks))
