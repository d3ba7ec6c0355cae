"""Plots as SVG: pure functions of a block and a width in pixels.

Text is not scaled: what is for a phone is drawn for a phone. Series differ in colour,
marker and dash; a point says its numbers where a mouse rests on it.
"""

import itertools
import math

from easylm.errors import UserError
from easylm.study import shapes
from easylm.study.shapes import (
    INK,
    MUTED,
    PAPER,
    escape,
    extent,
    figure,
    interval,
    nothing,
    real,
    said,
    tag,
)

GAP = 16  # between the series of a row of dots
MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "M-3.6 -3.6h7.2v7.2h-7.2z",
    "M0 -4.8L4.6 3.6H-4.6z",
    "M0 -5.2L5.2 0L0 5.2L-5.2 0z",
    "M0 4.8L4.6 -3.6H-4.6z",
    "M-1.6 -4.6h3.2v3h3v3.2h-3v3h-3.2v-3h-3v-3.2h3z",
    "M-5.6 -2.2h11.2v4.4h-11.2z",
)
DASHES = (None, "7 4", "2 3", "10 3 2 3", "5 2", "1 4", "12 4")


def plot(block, width=shapes.WIDE) -> str:
    """Lines with bands, or points with error bars, over two axes. A series may have
    another style than the rest."""
    names = [series["label"] for series in block["series"]]
    series = [_known(block, s["points"]) for s in block["series"]]  # None: missing
    points = [p for some in series for p in some if p]
    if not points:
        return nothing(block, width)
    percent, usual = block.get("percent"), block.get("style", "line")
    joined = [some.get("style", usual) == "line" for some in block["series"]]
    beside = all(joined) and width > 600 and _end_together(names, series)
    legend, top = ([], 0) if beside else _legend(names, width, joined)
    top, bottom = top + 34, top + (390 if width > 600 else 290)
    values = [v for p in points for v in (p["y"], *interval(p))]
    right = width - (max(map(extent, names)) + 30 if beside else 12)
    y = shapes.scale_of(values, bottom, top)
    grid, left = shapes.y_axis(y, right, 6, percent)
    log = block["x"].get("log")
    x = shapes.scale_of([p["x"] for p in points], left + 4, right - 4, log)
    say = shapes.formatter(values, percent)
    label = " ".join(shapes.wrap(block["y"]["label"], width, 1))
    drawn = [
        part
        for k, some in enumerate(series)
        for part in _series(k, names[k], some, x, y, say, joined[k])
    ]
    return figure(
        block,
        width,
        bottom + 46,
        *legend,
        shapes.text(label, 0, top - 16, MUTED),
        *grid,
        *shapes.x_axis(x, block["x"]["label"], bottom, left, right),
        *drawn,
        *(_names_beside(names, series, x, y, right) if beside else ()),
        *_names_of_points(points, x, y, (left, top, right, bottom)),
    )


def dots(block, width=shapes.WIDE) -> str:
    """A forest plot: for each row the intervals of its series, one below the other."""
    rows, zero = block["rows"], block.get("zero")
    points = [p for row in rows for p in row["points"] if real(p["mean"])]
    if not points:
        return nothing(block, width)
    names = list(dict.fromkeys(p["series"] for row in rows for p in row["points"]))
    legend, top = _legend(names, width) if len(names) > 1 else ([], 0)
    heights = [max(GAP * len(row["points"]) + 14, 34) for row in rows]
    left, middles, labels, bottom = _rows(rows, heights, top, width)
    values = [v for p in points for v in (p["mean"], *interval(p))]
    seen = values if zero is None else [*values, zero]
    x = shapes.scale_of(seen, left, width - 16)
    say, drawn = shapes.formatter(values, block.get("percent")), []
    if zero is not None:
        at = x(zero)
        drawn.append(shapes.line(at, top, at, bottom, INK, stroke_dasharray="4 3"))
    for row, middle in zip(rows, middles, strict=True):
        for k, p in enumerate(row["points"]):
            at = middle + GAP * (k - (len(row["points"]) - 1) / 2)
            if real(p["mean"]):
                series = names.index(p["series"])
                tip = f"{row['label']}, {p['series']}: {said(p, 'mean', say)}"
                drawn.append(_whisker(series, [(x(v), at) for v in interval(p)]))
                drawn.append(_marker(series, x(p["mean"]), at, tip))
    options = {"top": top, "percent": block.get("percent")}
    axis = shapes.x_axis(x, block["x"]["label"], bottom, left, width - 16, **options)
    return figure(block, width, bottom + 46, *legend, *axis, *drawn, *labels)


def bars(block, width=shapes.WIDE) -> str:
    """Horizontal bars from 0, each with its number, or with what the row says."""
    rows, texts = block["rows"], shapes.bar_texts(block)
    texts = [" ".join(shapes.wrap(words, 0.4 * width, 1)) for words in texts]
    values = [max(row["value"], 0) if real(row["value"]) else 0 for row in rows]
    left, middles, labels, bottom = _rows(rows, [36] * len(rows), 0, width)
    right = width - max(map(extent, texts), default=0) - 12
    x = shapes.Scale(0, max(values, default=0) or 1, left, right)
    drawn = []
    for value, words, middle in zip(values, texts, middles, strict=True):
        box = {"x": left, "y": middle - 9, "width": x(value) - left, "height": 18}
        drawn.append(tag("rect", **box, rx=2, fill=_colour(0)))
        drawn.append(shapes.text(words, x(value) + 8, middle + 4.5, **shapes.HALO))
    options = {"top": 0, "percent": block.get("percent")}
    axis = shapes.x_axis(x, block["x"]["label"], bottom, left, right, **options)
    return figure(block, width, bottom + 46, *axis, *drawn, *labels)


def _known(block, points):
    """The points, None in the place of one that is missing."""
    for p in points:
        if block["x"].get("log") and real(p["x"]) and p["x"] <= 0:
            raise UserError(
                f"plot {block['id']!r} has x = {p['x']} on a logarithmic axis; give x"
                " above 0, or set its log to false"
            )
    return [p if real(p["x"]) and real(p["y"]) else None for p in points]


def _series(k, name, points, x, y, say, joined):
    """Band or error bars, line, markers: of many points only some carry one."""
    drawn, known = [], [p for p in points if p]
    for there, run in itertools.groupby(points, bool):
        if not there:
            continue
        run = list(run)
        spans = [(x(p["x"]), *map(y, interval(p))) for p in run if interval(p)]
        if joined and len(spans) > 3:
            ends = [(a, b) for a, b, _ in spans] + [(a, b) for a, _, b in spans[::-1]]
            band = {"fill": _colour(k), "fill_opacity": 0.16}
            drawn.append(tag("polygon", points=_listed(ends), **band))
        else:
            drawn += [_whisker(k, [(a, low), (a, high)]) for a, low, high in spans]
        if joined:
            where = _listed([(x(p["x"]), y(p["y"])) for p in run])
            drawn.append(tag("polyline", points=where, **_stroke(k)))
    for p in known[:: math.ceil(len(known) / 12) if joined else 1]:
        at = shapes.formatter([p["x"]])(p["x"])
        tip = f"{p.get('label') or name}: {at}, {said(p, 'y', say)}"
        drawn.append(_marker(k, x(p["x"]), y(p["y"]), tip))
    return drawn


def _colour(k):
    return f"var(--series-{k % len(MARKERS) + 1})"


def _shape(k):
    """Which marker and dash: the eighth has the colour of the first, not its shape."""
    return (k + k // len(MARKERS)) % len(MARKERS)


def _stroke(k):
    dash = DASHES[_shape(k)]
    look = {"stroke": _colour(k), "stroke_width": 2, "stroke_dasharray": dash}
    return {"fill": "none", "stroke_linejoin": "round", **look}


def _marker(k, x, y, tip=None):
    look = {"fill": _colour(k), "stroke": PAPER, "stroke_width": 1.2}
    place = f"translate({x:.2f} {y:.2f})"
    title = [tag("title", escape(tip))] if tip else []
    return tag("path", *title, d=MARKERS[_shape(k)], transform=place, **look)


def _whisker(k, ends):
    look = {"stroke": _colour(k), "stroke_width": 2.2, "stroke_opacity": 0.6}
    return tag("polyline", points=_listed(ends), **look) if ends else ""


def _listed(points):
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in points)


def _legend(names, width, joined=()):
    """Rows of names, each after its marker; and their height."""
    drawn, x, y = [], 0, 12
    sample, joined = 30 if any(joined) else 12, joined or [False] * len(names)
    for k, name in enumerate(names):
        (words,) = shapes.wrap(name, width - sample - 10, 1) or [""]
        if x and x + sample + 8 + extent(words) > width:
            x, y = 0, y + 22
        if joined[k]:
            drawn.append(tag("polyline", points=f"{x},{y} {x + 30},{y}", **_stroke(k)))
        drawn.append(_marker(k, x + sample / 2, y))
        drawn.append(shapes.text(words, x + sample + 8, y + 4.5))
        x += sample + 8 + extent(words) + 18
    return drawn, y + 14


def _end_together(names, series):
    """Whether names fit beside the ends of lines, where no legend is needed."""
    known = [[p for p in points if p] for points in series]
    ends = {points[-1]["x"] for points in known if points}
    short = all(extent(name) <= 200 for name in names)
    return short and all(known) and len(ends) == 1 and len(names) <= 12


def _names_beside(names, series, x, y, right):
    """Names at the ends of lines, pushed apart, with a thin line where they moved."""
    ends = [[p for p in points if p][-1] for points in series]
    ends = [(x(p["x"]), y(p["y"])) for p in ends]
    order = sorted(range(len(ends)), key=lambda k: ends[k][1])
    places, low = {}, y.end
    for k in order:
        places[k] = low = max(low, ends[k][1])
        low += 18
    high = y.start
    for k in reversed(order):
        places[k] = min(places[k], high)
        high = places[k] - 18
    for k, (at, height) in enumerate(ends):
        ray = (at + 6, height, right + 12, places[k])
        yield shapes.line(*ray, _colour(k), stroke_opacity=0.5)
        yield shapes.text(names[k], right + 16, places[k] + 4.5, _colour(k))


def _names_of_points(points, x, y, frame):
    """The labels of points, each where it covers no marker and no other label."""
    taken = []
    for p in points:
        heights = [y(v) for v in (p["y"], *interval(p))]
        at = x(p["x"])
        taken.append((at - 5, min(heights) - 5, at + 5, max(heights) + 5))
    for p, marker in zip(points, taken.copy(), strict=True):
        wide = extent(p.get("label") or "")
        for box in _around(marker, y(p["y"]), wide, frame) if wide else ():
            if not any(_cover(box, other) for other in taken):
                taken.append(box)
                place = (box[0], box[3] - 3.5)
                yield shapes.text(p["label"], *place, **shapes.HALO)
                break


def _around(marker, y, wide, frame):
    """Boxes for a text about a marker and its bars, the best first."""
    left, top, right, bottom = marker
    sides = [
        x for x in (right + 3, left - 3 - wide) if frame[0] <= x <= frame[2] - wide
    ]
    for move in (0, -11, 11):
        for x in sides:
            yield x, y + move - 8, x + wide, y + move + 8
    x = min(max((left + right - wide) / 2, frame[0]), frame[2] - wide)
    yield x, top - 17, x + wide, top - 1
    yield x, bottom + 1, x + wide, bottom + 17


def _cover(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _rows(rows, heights, top, width):
    """-> where the plot begins, the middle of each row, labels and rules, the end.

    A label stands left of its row, or above it where that leaves too little room.
    """
    above = width <= 600
    widest = max((extent(row["label"]) for row in rows), default=0)
    left = 0 if above else min(widest, 0.32 * width) + 20
    middles, drawn = [], []
    for row, height in zip(rows, heights, strict=True):
        if drawn:
            drawn.append(shapes.line(0, top, width, top))
        words = shapes.wrap(row["label"], width if above else left - 20, 2)
        first = top + 18 if above else top + height / 2 + 12.5 - 8 * len(words)
        for k, part in enumerate(words):
            drawn.append(shapes.text(part, 0, first + 16 * k, **shapes.HALO))
        top += 8 + 16 * len(words) if above else 0
        middles.append(top + height / 2)
        top += height
    return left, middles, drawn, top
