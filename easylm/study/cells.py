"""What the cells of a table show: numbers as text, the best, better than a baseline.

A cell is null, a text, a number, or {"mean", "low", "high"}.
"""

from typing import NamedTuple

from easylm.study.shapes import MISSING, bar_texts, formatter, interval, real


class Cell(NamedTuple):
    text: str
    interval: str = ""
    best: bool = False
    change: float = 0.0  # against the baseline, -1 to 1; above 0 is better
    difference: str = ""
    number: bool = False


def shown(table) -> list[list[Cell]]:
    """The cells of every row; a row without cells is a heading and has dashes."""
    wide = len(table["columns"])
    grid = [row["cells"] or [None] * wide for row in table["rows"]]
    spread = _spread(table, grid)
    columns = [_column(table, k, [row[k] for row in grid], spread) for k in range(wide)]
    return [list(row) for row in zip(*columns, strict=True)]


def numbers(block) -> dict:
    """The numbers of a figure as a table."""
    if block["kind"] == "bars":
        columns, rows = [block["x"]["label"]], _rows_of_bars(block)
    elif block["kind"] == "dots":
        columns, rows = _dots(block)
    elif block.get("style") == "scatter":
        columns, rows = _points(block)
    else:
        columns, rows = _lines(block)
    table = {"kind": "table", "columns": columns, "rows": rows}
    titles = {"id": f"{block['id']}-numbers", "title": block["title"], "note": ""}
    options = {"percent": block.get("percent"), "higher_is_better": None}
    return table | titles | options


def _mean(cell):
    value = cell.get("mean") if isinstance(cell, dict) else cell
    return value if real(value) else None


def _sign(table, k):
    """1 if a column is better the higher, -1 the lower, 0 if neither."""
    better = table.get("higher_is_better", True)
    better = better[k] if isinstance(better, list) else better
    return 0 if better is None else 1 if better else -1


def _spread(table, grid):
    """The largest difference to the baseline: of each column, or of all if they are
    fractions, so that a column in which little happens keeps pale."""
    if table.get("baseline") is None:
        return None
    means = [[_mean(cell) for cell in row] for row in grid]
    base = means[table["baseline"]]
    most = [
        max((abs(m - b) for m in column if None not in (m, b)), default=0)
        for b, *column in zip(base, *means, strict=True)
    ]
    return [max(most)] * len(most) if table.get("percent") else most


def _column(table, k, cells, spread):
    means, percent = [_mean(cell) for cell in cells], table.get("percent")
    known = [mean for mean in means if mean is not None]
    bounds = [v for cell in cells if isinstance(cell, dict) for v in interval(cell)]
    say, sign = formatter(known + bounds, percent), _sign(table, k)
    best = say(max(known, key=lambda m: sign * m)) if sign and len(known) > 1 else None
    base = None if spread is None else means[table["baseline"]]
    column = []
    for cell, mean in zip(cells, means, strict=True):
        if isinstance(cell, str) or mean is None:
            column.append(Cell(cell if isinstance(cell, str) else MISSING))
            continue
        ends = ", ".join(map(say, interval(cell))) if isinstance(cell, dict) else ""
        change, difference = 0.0, ""
        if base is not None and sign and spread[k]:
            change = sign * (mean - base) / spread[k]
            difference = say(mean - base)
        text = say(mean)
        column.append(Cell(text, ends, text == best, change, difference, True))
    return column


def _rows_of_bars(block):
    texts = bar_texts(block)
    return [
        {"label": row["label"], "cells": [words]}
        for row, words in zip(block["rows"], texts, strict=True)
    ]


def _dots(block):
    rows = block["rows"]
    names = list(dict.fromkeys(p["series"] for row in rows for p in row["points"]))
    found = [{p["series"]: p for p in row["points"]} for row in rows]
    return names, [
        {"label": row["label"], "cells": [points.get(name) for name in names]}
        for row, points in zip(rows, found, strict=True)
    ]


def _points(block):
    rows = [
        {
            "label": " · ".join(filter(None, (series["label"], p.get("label")))),
            "cells": [formatter([p["x"]])(p["x"]), p | {"mean": p["y"]}],
        }
        for series in block["series"]
        for p in series["points"]
    ]
    return [block["x"]["label"], block["y"]["label"]], rows


def _lines(block):
    """A row for every x, a column for every line."""
    lines = [{p["x"]: p for p in s["points"]} for s in block["series"]]
    every = sorted({x for line in lines for x in line if real(x)})
    say = formatter(every)
    rows = [
        {"label": say(x), "cells": [_y(line.get(x)) for line in lines]} for x in every
    ]
    for row in rows:
        row["label"] = f"{block['x']['label']} {row['label']}"
    return [s["label"] for s in block["series"]], rows


def _y(point):
    return point and point | {"mean": point["y"]}
