"""What figures and pages are made of: tags, numbers, measured text, scales, axes.

Colours are the variables of style.css. A number that is missing (null, NaN, infinite)
is a dash as text and nothing as a shape.
"""

import html
import math
import re
from typing import NamedTuple

WIDE, NARROW = 860, 360  # pixels: for a page, for a phone
SVG = "http://www.w3.org/2000/svg"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
SIZE = 13  # of text, in pixels
HALO = {"stroke": "var(--paper)", "stroke_width": 4, "paint_order": "stroke"}
INK, MUTED, RULE, CARD, PAPER = (
    f"var(--{name})" for name in ("ink", "muted", "rule", "card", "paper")
)
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
NARROW_LETTERS, WIDE_LETTERS = "iljtfrI.,:;'|![]()- ", "mwMW@%\u2013\u2014\u2026\u2212"
MISSING, MINUS = "\u2013", "\u2212"  # a dash; a sign as wide as a digit


def escape(text) -> str:
    """Any text as HTML and XML; a character that neither may hold becomes U+FFFD."""
    return html.escape(FORBIDDEN.sub("\ufffd", str(text)))


def tag(name: str, *children: str, **attributes) -> str:
    """An element: children are markup, the values of attributes any text or number."""
    given = (
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{''.join(given)}>{''.join(children)}</{name}>"


def real(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def interval(cell) -> tuple:
    """(low, high), or () where one of them is missing."""
    ends = cell.get("low"), cell.get("high")
    return ends if all(map(real, ends)) else ()


def formatter(values, percent=False):
    """-> say(value): as many decimals for all, three digits for the largest of values.

    With `percent` a fraction is written as 57.3; a missing value is a dash.
    """
    scale = 100 if percent else 1
    values = [abs(scale * value) for value in values if real(value)]
    most = max(values, default=0)
    if percent:
        form = "z.1f"
    elif all(value == int(value) for value in values):
        form = "z,.0f"
    elif most < 1e-3:
        form = ".1e"
    else:
        form = f"z,.{min(max(2 - math.floor(math.log10(most)), 0), 4)}f"

    def say(value) -> str:
        return _signed(format(scale * value, form)) if real(value) else MISSING

    return say


def said(cell, key, say) -> str:
    """57.3 [55.1, 59.4], or without the interval where there is none."""
    ends = ", ".join(map(say, interval(cell)))
    return f"{say(cell[key])} [{ends}]" if ends else say(cell[key])


def bar_texts(block) -> list[str]:
    say = formatter([r["value"] for r in block["rows"]], block.get("percent"))
    return [row.get("text") or say(row["value"]) for row in block["rows"]]


def extent(text, size=SIZE) -> float:
    """About the width of a text, rather too much: fonts differ."""
    widths = {
        **dict.fromkeys(NARROW_LETTERS, 0.38),
        **dict.fromkeys(WIDE_LETTERS, 0.95),
    }
    return size * sum(1 if c > "\u2e7f" else widths.get(c, 0.62) for c in str(text))


def wrap(text, width, lines, size=SIZE) -> list[str]:
    """At most so many lines of at most this width; an ellipsis stands for the rest."""
    done = []
    for word in str(text).split():
        step = max(1, int(0.9 * len(word) * width / extent(word, size)))
        fits = extent(word, size) <= width
        for piece in [word] if fits else re.findall(f".{{1,{step}}}", word):
            if done and extent(f"{done[-1]} {piece}", size) <= width:
                done[-1] += f" {piece}"
            else:
                done.append(piece)
    if len(done) > lines:
        done[lines - 1] = done[lines - 1][: max(1, len(done[lines - 1]) - 2)] + "…"
    return done[:lines]


class Scale(NamedTuple):
    """Values to pixels: linear, or linear in the logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value) -> float:
        low, high, value = (
            math.log10(v) if self.log else v for v in (self.low, self.high, value)
        )
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """Round numbers in the range, about so many."""
        if self.log and self.high / self.low > 10:
            return self._log_ticks(count)
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / count))
        step = next(m * power for m in (1, 2, 5, 10) if m * power * count >= span)
        steps = range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        return [float(f"{k * step:.12g}") for k in steps]

    def _log_ticks(self, count):
        low, high = math.log10(self.low), math.log10(self.high)
        decades = range(math.floor(low), math.ceil(high) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            ticks = [float(f"{d}e{k}") for k in decades for d in digits]
            ticks = [tick for tick in ticks if self.low <= tick <= self.high]
            if len(ticks) <= count:
                return ticks
        return ticks[:: math.ceil(len(ticks) / count)]


def scale_of(values, start, end, log=False) -> Scale:
    """The scale that shows these values, with some air at both ends."""
    low, high = (math.log10(v) if log else v for v in (min(values), max(values)))
    air = 0.04 * (high - low) or 0.1 * abs(low) or 0.5
    ends = low - air, high + air
    return Scale(*(10**v if log else v for v in ends), start, end, bool(log))


def text(words, x, y, fill=INK, anchor=None, **more) -> str:
    return tag("text", escape(words), x=x, y=y, fill=fill, text_anchor=anchor, **more)


def line(x1, y1, x2, y2, stroke=RULE, **more) -> str:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=stroke, **more)


def figure(block, width, height, *children) -> str:
    """The drawing with its title and description, for who cannot see it."""
    note = re.sub(r"[`*]", "", block.get("note") or block["title"])
    return tag(
        "svg",
        tag("title", escape(block["title"])),
        tag("desc", escape(note)),
        *children,
        xmlns=SVG,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=round(width),
        height=round(height),
        role="img",
        font_family=FONT,
        font_size=SIZE,
    )


def nothing(block, width) -> str:
    return figure(block, width, 40, text("No numbers yet.", 0, 24, MUTED))


def y_axis(scale, right, count, percent=False) -> tuple[list[str], float]:
    """Grid lines with their numbers, and where the lines begin."""
    ticks = scale.ticks(count)
    texts = tick_texts(scale, ticks, percent)
    left, drawn = max(map(extent, texts)) + 8, []
    for tick, words in zip(ticks, texts, strict=True):
        drawn.append(line(left, scale(tick), right, scale(tick)))
        drawn.append(text(words, left - 8, scale(tick) + 4.5, MUTED, "end"))
    return drawn, left


def x_axis(scale, label, y, left, right, *, top=None, percent=False) -> list[str]:
    """A line with ticks (grid lines from `top` on, if given) and the label below."""
    ticks = scale.ticks(max(2, int((right - left) / 70)))
    drawn = []
    for tick, words in zip(ticks, tick_texts(scale, ticks, percent), strict=True):
        at, upper = scale(tick), y if top is None else top
        drawn.append(line(at, upper, at, y + 5))
        at = max(at, extent(words) / 2)
        drawn.append(text(words, at, y + 20, MUTED, "middle"))
    words, *_ = wrap(label, right, 1) or [""]
    middle = max((left + right) / 2, extent(words) / 2)
    drawn.append(text(words, middle, y + 40, MUTED, "middle"))
    return [*drawn, line(left, y, right, y, MUTED)]


def tick_texts(scale, ticks, percent=False) -> list[str]:
    """Short: 20k for 20,000; as many decimals for all, but on a logarithmic axis."""
    ticks = [100 * tick if percent else tick for tick in ticks]
    if scale.log:
        return [_short(tick, *_unit(tick, 1e3)) for tick in ticks]
    most = max(map(abs, ticks), default=0)
    size, unit = _unit(most, 1e4)
    texts = [_short(tick, size) for tick in ticks]
    if most < 1e-3:
        return texts
    places = max((len(words.partition(".")[2]) for words in texts), default=0)
    return [
        _signed(f"{tick / size:.{places}f}{unit if tick else ''}") for tick in ticks
    ]


def _unit(value, least):
    units = (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")
    found = (u for u in units if abs(value) >= max(u[0], least))
    return next(found, (1, ""))


def _short(value, size, unit=""):
    exponent = re.sub(r"e([+-])0", r"e\1", f"{value / size:.6g}").replace("e+", "e")
    return _signed(exponent + unit)


def _signed(digits: str) -> str:
    return digits.replace("-", MINUS)


def _value(value) -> str:
    if isinstance(value, float):
        value = f"{value:.2f}".rstrip("0").rstrip(".")
    return escape(value)
