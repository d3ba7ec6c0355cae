"""The pipeline figure: stages as boxes in columns, arrows between them."""

import itertools

from easylm.errors import UserError
from easylm.study import shapes
from easylm.study.shapes import CARD, MUTED, RULE, escape, tag

BETWEEN = 40  # pixels between columns, where the arrows bend


def pipeline(block, width=shapes.WIDE) -> str:
    """Columns from left to right, or on a phone from top to bottom.

    Below, "along" is where arrows point to, and "across" is the other direction.
    """
    nodes, down = block["nodes"], width <= 600
    if not nodes:
        return shapes.nothing(block, width)
    first = min(node["row"] for node in nodes)
    abreast = 1 + max(n["row"] - first if down else n["column"] for n in nodes)
    between = 10 if down else BETWEEN
    wide = min(max((width + between) / abreast - between - 1, 104), 210)
    texts = {node["id"]: _texts(node, wide - 16) for node in nodes}
    high = 20 + max(17 * len(label) + 15 * len(rest) for label, rest in texts.values())
    size = (high, wide) if down else (wide, high)
    step = (size[0] + BETWEEN, size[1] + (10 if down else 24))
    air = (step[1] - size[1]) / 2  # for arrows that pass outside of the boxes
    places = {
        n["id"]: (step[0] * n["column"] + 1, step[1] * (n["row"] - first) + air)
        for n in nodes
    }
    _check_edges(block, places)
    ends = [max(p[k] for p in places.values()) + size[k] for k in (0, 1)]
    ends = [ends[0] + 1, ends[1] + air]
    paths = [_path(places, edge, size, step, ends) for edge in block["edges"]]
    if any(places[b][0] < places[a][0] for a, b in block["edges"]):
        ends[1] += BETWEEN
    arrows = [_arrow([_turned(p, down) for p in path]) for path in paths]
    boxes = [
        _box(node, *_turned(places[node["id"]], down), wide, high, *texts[node["id"]])
        for node in nodes
    ]
    return shapes.figure(block, *_turned(ends, down), *arrows, *boxes)


def _check_edges(block, places):
    for name in (name for edge in block["edges"] for name in edge):
        if name not in places:
            raise UserError(
                f"pipeline {block['id']!r} has an edge at {name!r}, which is no node;"
                f" give one of {', '.join(places)}"
            )


def _turned(pair, down):
    return (pair[1], pair[0]) if down else (pair[0], pair[1])


def _texts(node, width):
    label = shapes.wrap(node["label"], width, 3, shapes.SIZE + 1)
    return label, shapes.wrap(node.get("detail") or "", width, 5, shapes.SIZE - 1)


def _box(node, x, y, wide, high, label, detail):
    full = f"{node['label']}: {node['detail']}" if node.get("detail") else node["label"]
    frame = {"fill": CARD, "stroke": RULE, "stroke_width": 1.5, "rx": 7}
    drawn = [tag("rect", x=x, y=y, width=wide, height=high, **frame)]
    at = y + (high - 17 * len(label) - 15 * len(detail)) / 2 - 4
    for words in label:
        at += 17
        drawn.append(shapes.text(words, x + 8, at, font_weight=600))
    for words in detail:
        at += 15
        drawn.append(shapes.text(words, x + 8, at, MUTED, font_size=shapes.SIZE - 1))
    return tag("g", tag("title", escape(full)), *drawn)


def _path(places, edge, size, step, ends):
    """[start, control, control, point, ...]: curves between columns, past the boxes."""
    (a, c), (to_a, to_c) = places[edge[0]], places[edge[1]]
    if to_a < a:  # back, below everything
        a, c, to_a, to_c = (
            a + size[0] / 2,
            c + size[1],
            to_a + size[0] / 2,
            to_c + size[1],
        )
        deep = ends[1] + BETWEEN
        return [(a, c), (a, deep), (to_a, deep), (to_a, to_c)]
    if to_a == a:  # within the column
        a, below = a + size[0] / 2, to_c > c
        c, to_c = (c + size[1], to_c) if below else (c, to_c + size[1])
        return [(a, c), (a, c), (a, to_c), (a, to_c)]
    stops = [(a + size[0], c + size[1] / 2)]
    for k in range(1, round((to_a - a) / step[0])):
        column = a + k * step[0]
        lane = c + (to_c - c) * k * step[0] / (to_a - a) + size[1] / 2
        lane = _lane(lane, column, places, size, step)
        stops += [(column, lane), (column + size[0], lane)]
    stops.append((to_a, to_c + size[1] / 2))
    path = stops[:1]
    for (x, y), (to_x, to_y) in itertools.pairwise(stops):
        path += [((x + to_x) / 2, y), ((x + to_x) / 2, to_y), (to_x, to_y)]
    return path


def _lane(lane, column, places, size, step):
    """The nearest way past the boxes of a column."""
    air = (step[1] - size[1]) / 2
    for a, c in places.values():
        if abs(a - column) < 1 and c - 6 < lane < c + size[1] + 6:
            return min(c - air, c + size[1] + air, key=lambda side: abs(side - lane))
    return lane


def _arrow(path):
    """The curve, and a head that points where the curve ends."""
    start, *rest = (f"{x:.1f} {y:.1f}" for x, y in path)
    (x, y) = path[-1]
    before = next(p for p in reversed(path) if p != path[-1])
    dx, dy = ((v > 0) - (v < 0) for v in (x - before[0], y - before[1]))
    head = [
        (x, y),
        (x - 8 * dx - 4 * dy, y - 8 * dy - 4 * dx),
        (x - 8 * dx + 4 * dy, y - 8 * dy + 4 * dx),
    ]
    listed = " ".join(f"{x:.1f},{y:.1f}" for x, y in head)
    curve = tag(
        "path",
        d=f"M{start}C{' '.join(rest)}",
        fill="none",
        stroke=MUTED,
        stroke_width=1.5,
    )
    return curve + tag("polygon", points=listed, fill=MUTED)
