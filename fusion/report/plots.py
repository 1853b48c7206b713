"""Small charts as inline SVG text: lines, columns and interval tracks. No library, no script, no colours.

Colours are classes and CSS variables of `style.py`, so that a chart follows light and dark. Charts with a
`viewBox` keep their text near 11 px at the widths that the page gives them; tracks have no viewBox but
percentages, so they fill whatever cell they stand in. Everything that is text goes through `escape`.
"""

import dataclasses
import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 34
NUM_COLOURS = 8
MAX_POINTS = 80
"""Points of a line that answer to the mouse; longer series are averaged in buckets."""


@dataclasses.dataclass(frozen=True, slots=True)
class Series:
    """One line: its name, its points (x, y), and which of the colours it has."""

    name: str
    points: tuple[tuple[float, float], ...]
    colour: int


def number(value: float, *, sign: bool = False) -> str:
    """Return a number for people: 3 decimals, fewer for large ones, a real minus sign."""
    if value == 0:
        return "0"
    decimals = 3 if abs(value) < 100 else 1 if abs(value) < 1e5 else 0
    return f"{value:{'+' if sign else ''},.{decimals}f}".replace("-", "−")


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Return round numbers from at most `low` to at least `high`, in steps of 1, 2 or 5 times a power of ten.

    Example: `ticks(0.13, 0.94)` is [0.0, 0.2, 0.4, 0.6, 0.8, 1.0].
    """
    if not high - low > 1e-9 * max(abs(low), abs(high), 1e-6):  # flat, as far as labels can tell
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(i * step, digits) for i in range(first, last + 1)]


def tick_text(value: float, step: float) -> str:
    """Return a tick's label with as many decimals as its step needs."""
    if abs(value) >= 1e4:
        return f"{value / 1000:,.{0 if step >= 1000 else 1}f}k".replace("-", "−")
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step < 1 else 0
    return f"{value:,.{decimals}f}".replace("-", "−")


def smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the running mean over about a tenth of the points, centred, the window cut at the ends."""
    half = len(points) // 20
    values = [y for _, y in points]
    return [(x, sum(part := values[max(0, i - half) : i + half + 1]) / len(part)) for i, (x, _) in enumerate(points)]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    mark: tuple[float, str] | None = None,
    y_range: tuple[float, float] | None = None,
    smoothed: bool = True,
) -> str:
    """Return an SVG with a smoothed line per series over its faint raw values, axes with ticks, and tooltips.

    Args:
        mark: a y value with a name, drawn as a dashed line (e.g. ln 2).
        y_range: range that the y axis has to cover; None takes the data's own.
    """
    thinned = [dataclasses.replace(s, points=tuple(_thin(s.points))) for s in series]
    xs = [x for s in thinned for x, _ in s.points]
    ys = [y for s in thinned for _, y in s.points] + ([mark[0]] if mark else []) + list(y_range or ())
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_of = _scale(min(xs), max(*xs, min(xs) + 1), LEFT, WIDTH - RIGHT)
    y_of = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [_open(title, HEIGHT), _axes([x for x in x_ticks if min(xs) <= x <= max(xs)], y_ticks, x_of, y_of, "step")]
    if mark:
        y = y_of(mark[0])
        parts.append(
            f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{WIDTH - RIGHT}" y="{y - 4:.1f}" text-anchor="end">{escape(mark[1])}</text>'
        )
    for s in thinned:
        line = smooth(s.points) if smoothed else s.points
        if line != s.points:
            parts.append(f'<path class="raw c{s.colour}" d="{_path(s.points, x_of, y_of)}"/>')
        parts.append(f'<path class="line c{s.colour}" d="{_path(line, x_of, y_of)}"/>')
        for (x, y), (_, mean) in zip(s.points, line, strict=True):
            text = f"{s.name}, step {x:g}: {number(y)} (running mean {number(mean)})"
            parts.append(
                f'<circle class="hit c{s.colour}" cx="{x_of(x):.1f}" cy="{y_of(mean):.1f}" r="5">'
                f"<title>{escape(text)}</title></circle>"
            )
    return "".join([*parts, "</svg>"])


def histogram(
    title: str, counts: Sequence[float], edges: Sequence[float], *, mean: float, x_range: tuple[float, float]
) -> str:
    """Return an SVG of the share of values per bin, with the mean marked; `x_range` is shared by sister charts."""
    height, total = 150, sum(counts) or 1
    x_ticks, y_ticks = ticks(*x_range), ticks(0, max(counts) / total, about=3)
    x_of = _scale(*x_range, LEFT, WIDTH - RIGHT)
    y_of = _scale(0, y_ticks[-1], height - BOTTOM, TOP)
    parts = [
        _open(title, height),
        _axes([x for x in x_ticks if x_range[0] <= x <= x_range[1]], y_ticks, x_of, y_of, "reward", percent=True),
    ]
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        x, y = x_of(low), y_of(count / total)
        width = max(x_of(high) - x - 1, 0.5)
        text = f"{number(low)} to {number(high)}: {count:,} ({count / total:.1%})"
        parts.append(
            f'<rect class="column" x="{x + 0.5:.1f}" y="{y:.1f}" width="{width:.1f}" height="{y_of(0) - y:.1f}">'
            f"<title>{escape(text)}</title></rect>"
        )
    at = x_of(mean)
    side = "end" if at > WIDTH * 0.7 else "start"
    parts.append(
        f'<line class="mean" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 6}" y2="{y_of(0):.1f}"/>'
        f'<text class="value" x="{at + (-5 if side == "end" else 5):.1f}" y="{TOP + 3}" text-anchor="{side}">mean {number(mean)}</text>'
    )
    return "".join([*parts, "</svg>"])


def track(
    mean: float, low: float, high: float, *, marks: Sequence[float], text: str, tone: str = "", zero: bool = False
) -> str:
    """Return a dot with its interval on a thin track from the first to the last of `marks` that fills its cell.

    `zero` draws the line of no difference.
    """
    base = f'<line class="zero" x1="{_at(0, marks)}" x2="{_at(0, marks)}" y1="0" y2="100%"/>' if zero else ""
    return (
        f'<svg class="track {tone}" width="100%" height="18" role="img" aria-label="{escape(text)}">'
        f'<title>{escape(text)}</title><line class="rail" x1="0" x2="100%" y1="9" y2="9"/>{base}'
        f'<line class="span" x1="{_at(low, marks)}" x2="{_at(high, marks)}" y1="9" y2="9"/><circle cx="{_at(mean, marks)}" cy="9" r="4"/></svg>'
    )


def track_axis(marks: Sequence[float]) -> str:
    """Return the ticks of a column of tracks."""
    step = marks[1] - marks[0]
    shown = "".join(
        f'<text class="tick" x="{_at(m, marks)}" y="12" text-anchor="middle">{tick_text(m, step)}</text>' for m in marks
    )
    return f'<svg class="axis-row" width="100%" height="16" aria-hidden="true">{shown}</svg>'


def _at(value: float, marks: Sequence[float]) -> str:
    return f"{4 + 92 * (value - marks[0]) / (marks[-1] - marks[0]):.2f}%"


def _scale(low: float, high: float, start: float, end: float):
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _open(title: str, height: int) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'


def _axes(x_ticks, y_ticks, x_of, y_of, x_name: str, *, percent: bool = False) -> str:
    step_x = x_ticks[1] - x_ticks[0] if len(x_ticks) > 1 else 1
    step_y = y_ticks[1] - y_ticks[0]
    bottom = y_of(y_ticks[0])
    parts = []
    for y in y_ticks:
        kind = "axis" if y == y_ticks[0] or y == 0 else "grid"
        label = f"{y * 100:g} %" if percent else tick_text(y, step_y)
        parts.append(
            f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_of(y):.1f}" y2="{y_of(y):.1f}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{y_of(y) + 3.5:.1f}" text-anchor="end">{label}</text>'
        )
    for x in x_ticks:
        parts.append(
            f'<text class="tick" x="{x_of(x):.1f}" y="{bottom + 15:.1f}" text-anchor="middle">{tick_text(x, step_x)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{bottom + 30:.1f}" text-anchor="middle">{escape(x_name)}</text>')
    return "".join(parts)


def _path(points: Sequence[tuple[float, float]], x_of, y_of) -> str:
    return "M" + "L".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS points: means of buckets of equal size, at the last x of each."""
    size = math.ceil(len(points) / MAX_POINTS)
    buckets = [points[i : i + size] for i in range(0, len(points), size)]
    return [(bucket[-1][0], sum(y for _, y in bucket) / len(bucket)) for bucket in buckets]
