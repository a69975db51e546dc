"""Plots of error rates as SVG inside a page: no picture to fetch, and colours that follow light and dark.

Colours are classes of page.css: `s0` is the base or the first system, `s1` and on are the others.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from hra_jax.console import html_text, percent

COLOURS = 6  # classes of systems; more repeat them
_WIDTH, _LANE = 220, 11  # of the dots of a row, and of one system in it
_EDGE = 8


class Dot(NamedTuple):
    """An error rate with its interval, which may be None, and the number of its colour."""

    rate: float | None
    low: float | None
    high: float | None
    colour: int
    name: str = ""


def nice_limit(rates: Sequence[float | None]) -> float:
    """The end of an axis that begins at 0 and holds all rates: 1, 2, 2.5 or 5 times a power of ten."""
    most = max((rate for rate in rates if rate is not None), default=0.0)
    if most <= 0:
        return 0.01
    unit = 10.0 ** math.floor(math.log10(most))
    return next(unit * step for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if unit * step >= most * 0.999)


def _tag(name: str, content: str = "", /, **attributes: object) -> str:
    """An element; `cls` stands for class, and numbers have one decimal."""
    words = "".join(
        f' {"class" if key == "cls" else key.replace("_", "-")}="{_number(value)}"' for key, value in attributes.items()
    )
    return f"<{name}{words}>{content}</{name}>"


def _number(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else html_text(str(value))


def _svg(content: str, *, width: float, height: float, label: str, cls: str) -> str:
    box = f"0 0 {_number(float(width))} {_number(float(height))}"
    return (
        f'<svg class="{cls}" viewBox="{box}" width="{_number(float(width))}" height="{_number(float(height))}" '
        f'role="img" aria-label="{html_text(label)}">{content}</svg>'
    )


def dots(systems: Sequence[Dot], *, limit: float) -> str:
    """A row of a table: a dot with whiskers for each system, on an axis from 0 to `limit`."""
    height = _LANE * len(systems) + 6

    def x(rate: float) -> float:
        return _EDGE + (_WIDTH - 2 * _EDGE) * min(rate, limit) / limit

    parts = [
        _tag("line", cls="grid", x1=x(limit * part / 4), x2=x(limit * part / 4), y1=0, y2=height) for part in range(5)
    ]
    for lane, dot in enumerate(systems):
        y, colour = 3 + _LANE * (lane + 0.5), f"s{dot.colour % COLOURS}"
        if dot.low is not None and dot.high is not None:
            parts.append(_tag("line", cls=f"whisker {colour}", x1=x(dot.low), x2=x(dot.high), y1=y, y2=y))
        if dot.rate is not None:
            parts.append(_tag("circle", cls=colour, cx=x(dot.rate), cy=y, r=4))
    label = ", ".join(f"{dot.name} {percent(dot.rate)}" for dot in systems)
    return _svg("".join(parts), width=_WIDTH, height=height, label=label, cls="dots")


def axis(limit: float) -> str:
    """The axis of `dots`, for the head of their column."""
    marks = []
    for part in (0, 2, 4):
        anchor = {0: "start", 2: "middle", 4: "end"}[part]
        at = {0: 0.0, 2: _WIDTH / 2, 4: float(_WIDTH)}[part]
        marks.append(_tag("text", axis_text(limit * part / 4), cls="tick", x=at, y=11, text_anchor=anchor))
    return _svg("".join(marks), width=_WIDTH, height=14, label=f"0 to {axis_text(limit)}", cls="axis")


def axis_text(rate: float) -> str:
    """A rate as axes show it."""
    return f"{100 * rate:.3g}%"


# --- Curves and scatters ----------------------------------------------------------------------------------------------

_BOX_WIDTH, _BOX_HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 16, 12, 50


class Series(NamedTuple):
    """A line of a plot, or a point by itself: places on the x axis from 0 to 1, and rates with intervals."""

    name: str
    colour: int
    points: Sequence[tuple[float, Dot]]


def _frame(limit: float, *, ticks: Sequence[tuple[float, str]], title: str) -> list[str]:
    """Grid, axes and their texts."""
    parts = []
    for part in range(5):
        y = _y(limit * part / 4, limit)
        parts.append(_tag("line", cls="grid", x1=_LEFT, x2=_BOX_WIDTH - _RIGHT, y1=y, y2=y))
        parts.append(_tag("text", axis_text(limit * part / 4), cls="tick", x=_LEFT - 6, y=y + 4, text_anchor="end"))
    for at, text in ticks:
        parts.append(
            _tag("text", html_text(text), cls="tick", x=_x(at), y=_BOX_HEIGHT - _BOTTOM + 18, text_anchor="middle")
        )
    middle = (_LEFT + _BOX_WIDTH - _RIGHT) / 2
    return [*parts, _tag("text", html_text(title), cls="tick", x=middle, y=_BOX_HEIGHT - 6, text_anchor="middle")]


def _x(at: float) -> float:
    return _LEFT + 14 + at * (_BOX_WIDTH - _LEFT - _RIGHT - 28)


def _y(rate: float, limit: float) -> float:
    return _TOP + (_BOX_HEIGHT - _TOP - _BOTTOM) * (1 - min(rate, limit) / limit)


def plot(
    series: Sequence[Series], *, ticks: Sequence[tuple[float, str]], title: str, label: str, shifted: bool = True
) -> str:
    """Lines of rates with whiskers, and a legend below them.

    Args:
      series: what is drawn.
      ticks: places on the x axis from 0 to 1, and their texts.
      title: of the x axis.
      label: what the plot shows, for those who cannot see it.
      shifted: whether the points of lines stand a little beside each other, so that all whiskers are seen.
    """
    known = [dot for one in series for _, dot in one.points]
    limit = nice_limit([rate for dot in known for rate in (dot.rate, dot.high)])
    parts = _frame(limit, ticks=ticks, title=title)
    for number, one in enumerate(series):
        colour = f"s{one.colour % COLOURS}"
        shift = (number - (len(series) - 1) / 2) * min(5.0, 24.0 / len(series)) * shifted
        line = []
        for at, dot in one.points:
            if dot.rate is None:
                continue
            x, y = _x(at) + shift, _y(dot.rate, limit)
            line.append(f"{_number(x)},{_number(y)}")
            if dot.low is not None and dot.high is not None:
                low, high = _y(dot.low, limit), _y(dot.high, limit)
                parts.append(_tag("line", cls=f"whisker {colour}", x1=x, x2=x, y1=low, y2=high))
            parts.append(
                _tag(
                    "circle", _tag("title", html_text(f"{one.name}: {percent(dot.rate)}")), cls=colour, cx=x, cy=y, r=4
                )
            )
        if len(line) > 1:
            parts.insert(0, _tag("polyline", cls=f"line {colour}", points=" ".join(line)))
    svg = _svg("".join(parts), width=_BOX_WIDTH, height=_BOX_HEIGHT, label=label, cls="plot")
    return f"<figure>{svg}<figcaption>{legend([(one.name, one.colour) for one in series])}</figcaption></figure>"


def legend(names: Sequence[tuple[str, int]]) -> str:
    """Names with the colours of their dots."""
    return " ".join(
        f'<span class="key"><svg class="mark" width="10" height="10" viewBox="0 0 10 10" aria-hidden="true">'
        f'<circle class="s{colour % COLOURS}" cx="5" cy="5" r="4"></circle></svg> <bdi>{html_text(name)}</bdi></span>'
        for name, colour in names
    )


def log_places(values: Sequence[float]) -> list[float]:
    """Numbers, 0 and above, as places from 0 to 1: equal factors are equal distances; below 1 is as 1."""
    logs = [math.log10(max(value, 1)) for value in values]
    low, high = min(logs), max(logs)
    return [0.5 if high == low else (value - low) / (high - low) for value in logs]


def key(names: Sequence[tuple[str, int]], limit: float) -> str:
    """A line below a heading: whose dots are which, and how far their axis goes."""
    return (
        f'<p class="quiet">{legend(names)} Dots are error rates, whiskers their 95% intervals, on an axis from 0 to '
        f"{axis_text(limit)}.</p>"
    )
