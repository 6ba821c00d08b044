"""Charts as SVG out of the server: no script, no inline style, colours from `console.css` by class.

Each chart says what it shows in `<title>` and `<desc>`, tells its lines apart by dash as well as by colour, and
comes with its numbers as a table. Lines break where there is nothing to show: a gap is not a zero.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf, log10
from xml.etree import ElementTree

from django.utils.safestring import SafeString, mark_safe

from mlserve.console import units
from mlserve.console.window import Span

_WIDTH, _HEIGHT = 440.0, 170.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 8.0, 10.0, 24.0
_LONGEST_GAP_S = 45.0
"""A line connects snapshots that lie closer than this."""
_TABLE_ROWS = 12
_AGE_LABELS = 7
"""As many as fit below the bars without touching."""
_TIME_TICK_S = 600
_SHORT_TIME_TICK_S = 120
_LONG_S = 1500.0

Point = tuple[float, float | None]
"""Seconds since 1970 and the value there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """`style` is a class of the style sheet: it gives the colour and the dash."""

    name: str
    style: str
    points: Sequence[Point]

    @property
    def latest(self) -> float | None:
        return self.points[-1][1] if self.points else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Legend:
    name: str
    style: str
    latest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """`svg` is empty if there is nothing to draw yet."""

    title: str
    note: str
    svg: SafeString
    legend: tuple[Legend, ...]
    table: Table


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """Values to heights, with its ticks."""

    ticks: tuple[float, ...]
    low: float
    high: float
    logarithmic: bool = False

    def y(self, value: float) -> float:
        low, high = self.low, self.high
        value = min(max(value, low), high)
        if self.logarithmic:
            low, high, value = log10(low), log10(high), log10(value)
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)


ScaleOf = Callable[[Sequence[float]], _Scale]
Write = Callable[[float | None], str]


def share_scale(_values: Sequence[float]) -> _Scale:
    """0 to 100 %."""
    return _Scale(ticks=(0.0, 0.25, 0.5, 0.75, 1.0), low=0.0, high=1.0)


def linear_scale(values: Sequence[float]) -> _Scale:
    """From 0 to a round number above the largest value."""
    largest = max((value for value in values if value != inf), default=0.0) or 1.0
    magnitude = 10.0 ** floor(log10(largest / 4))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude * 4 >= largest)
    return _Scale(ticks=tuple(step * i for i in range(5)), low=0.0, high=4 * step)


def log_scale(values: Sequence[float]) -> _Scale:
    """Whole powers of ten around the values: microseconds and seconds in one picture."""
    finite = [value for value in values if 0 < value < inf] or [1e-3]
    low, high = floor(log10(min(finite))), ceil(log10(max(finite)))
    high = max(high, low + 1)
    return _Scale(
        ticks=tuple(10.0**power for power in range(low, high + 1)), low=10.0**low, high=10.0**high, logarithmic=True
    )


def time_chart(
    *,
    title: str,
    note: str,
    lines: Sequence[Line],
    since: float,
    until: float,
    scale_of: ScaleOf,
    write: Write,
) -> Chart:
    """Lines over time from `since` to `until` (seconds since 1970); `write` puts a value with its unit into words."""
    lines = [line for line in lines if any(value is not None for _at, value in line.points)]
    legend = tuple(Legend(name=line.name, style=line.style, latest=write(line.latest)) for line in lines)
    if not any(len(line.points) > 1 for line in lines):
        return Chart(title=title, note=note, svg=mark_safe(""), legend=(), table=Table(headers=(), rows=()))
    scale = scale_of([value for line in lines for _at, value in line.points if value is not None])
    svg = _svg(title, f"{note}. Newest: " + ", ".join(f"{one.name} {one.latest}" for one in legend) + ".")
    for tick in scale.ticks:
        _gridline(svg, scale.y(tick), units.without_zeros(write(tick)))

    def x(at: float) -> float:
        return _LEFT + (at - since) / (until - since) * (_WIDTH - _LEFT - _RIGHT)

    tick_s = _TIME_TICK_S if until - since > _LONG_S else _SHORT_TIME_TICK_S
    for at in range(ceil(since / tick_s) * tick_s, int(until) + 1, tick_s):
        if _LEFT + 15 <= x(at) <= _WIDTH - 18:
            _text(svg, x(at), _HEIGHT - 7, units.moment(at)[:5], "chart-time")
    for line in lines:
        path = _path([(x(at), None if value is None else scale.y(value)) for at, value in line.points], x)
        ElementTree.SubElement(svg, "path", {"class": f"chart-line {line.style}", "d": path})
    return Chart(title=title, note=note, svg=_markup(svg), legend=legend, table=_table(lines, write))


def age_chart(*, group: str, ranges: Sequence[tuple[float, float, float]], limit_s: float | None) -> SafeString:
    """Bars: the share of reads by the age of what was read; the limit as a line, bars past it coloured."""
    width, height, left, bottom, top = 360.0, 120.0, 4.0, 22.0, 12.0
    total = sum(count for _lower, _upper, count in ranges) or 1.0
    largest = max((count for _lower, _upper, count in ranges), default=0.0) or 1.0
    slot = (width - 2 * left) / max(len(ranges), 1)
    every = ceil(len(ranges) / _AGE_LABELS) or 1
    svg = _svg(
        f"Age of {group} when used",
        f"Limit {units.span(limit_s)}. "
        + ", ".join(
            f"{_age_label(lower, upper)}: {units.share(count / total)}" for lower, upper, count in ranges if count
        ),
        width=width,
        height=height,
    )
    for position, (lower, upper, count) in enumerate(ranges):
        past = limit_s is not None and lower >= limit_s
        tall = count / largest * (height - bottom - top)
        bar = {
            "class": "chart-bar past-limit" if past else "chart-bar",
            "x": f"{left + position * slot + 1:.1f}",
            "y": f"{height - bottom - max(tall, 1.5 if count else 0.5):.1f}",
            "width": f"{slot - 2:.1f}",
            "height": f"{max(tall, 1.5 if count else 0.5):.1f}",
        }
        rect = ElementTree.SubElement(svg, "rect", bar)
        ElementTree.SubElement(rect, "title").text = f"{_age_label(lower, upper)}: {units.share(count / total)}"
        if upper == inf or (position % every == every - 1 and len(ranges) - position > every // 2):
            _text(
                svg,
                left + (position + 0.5) * slot,
                height - 7,
                "older" if upper == inf else _short(upper),
                "chart-time",
            )
    if limit_s is not None:
        at = left + slot * _position(limit_s, ranges)
        line = {"class": "chart-limit", "x1": f"{at:.1f}", "x2": f"{at:.1f}", "y1": "2", "y2": f"{height - bottom:.1f}"}
        ElementTree.SubElement(svg, "line", line)
    return _markup(svg)


def share_bar(*, title: str, share: float) -> SafeString:
    """How full something is, 0 to 1."""
    svg = _svg(title, units.share(share), width=200.0, height=8.0)
    svg.set("preserveAspectRatio", "none")
    ElementTree.SubElement(svg, "rect", {"class": "chart-track", "width": "200", "height": "8"})
    filled = {"class": "chart-bar", "width": f"{200 * min(max(share, 0.0), 1.0):.1f}", "height": "8"}
    ElementTree.SubElement(svg, "rect", filled)
    return _markup(svg)


def _svg(title: str, description: str, *, width: float = _WIDTH, height: float = _HEIGHT) -> ElementTree.Element:
    svg = ElementTree.Element("svg", {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "class": "chart"})
    svg.set("aria-label", title)
    ElementTree.SubElement(svg, "title").text = title
    ElementTree.SubElement(svg, "desc").text = description
    return svg


def _markup(svg: ElementTree.Element) -> SafeString:
    return mark_safe(ElementTree.tostring(svg, encoding="unicode"))  # ElementTree has escaped all text


def _gridline(svg: ElementTree.Element, y: float, label: str) -> None:
    line = {"class": "chart-grid", "x1": f"{_LEFT:g}", "x2": f"{_WIDTH - _RIGHT:g}", "y1": f"{y:.1f}", "y2": f"{y:.1f}"}
    ElementTree.SubElement(svg, "line", line)
    _text(svg, _LEFT - 6, y + 3.5, label, "chart-value")


def _text(svg: ElementTree.Element, x: float, y: float, text: str, style: str) -> None:
    ElementTree.SubElement(svg, "text", {"class": style, "x": f"{x:.1f}", "y": f"{y:.1f}"}).text = text


def _path(points: Sequence[tuple[float, float | None]], x: Callable[[float], float]) -> str:
    longest = x(_LONGEST_GAP_S) - x(0.0)
    steps: list[str] = []
    pen_at: float | None = None
    for across, height in points:
        if height is None:
            pen_at = None
            continue
        connected = pen_at is not None and across - pen_at <= longest
        # A lone point becomes a dot: a move and a line of no length, drawn by its round cap.
        steps.append(f"L{across:.1f} {height:.1f}" if connected else f"M{across:.1f} {height:.1f}h0")
        pen_at = across
    return "".join(steps)


def _table(lines: Sequence[Line], write: Write) -> Table:
    moments = sorted({at for line in lines for at, _value in line.points})
    every = max(1, ceil(len(moments) / _TABLE_ROWS))
    by_time = [dict(line.points) for line in lines]
    return Table(
        headers=("time", *(line.name for line in lines)),
        rows=tuple(
            (units.moment(at), *(write(values.get(at)) for values in by_time)) for at in reversed(moments[::-every])
        ),
    )


def _position(limit_s: float, ranges: Sequence[tuple[float, float, float]]) -> float:
    """Where `limit_s` lies, counted in bars; inside a bar by its share of the bar's range."""
    for position, (lower, upper, _count) in enumerate(ranges):
        if limit_s <= upper:
            return position + (0.5 if upper == inf else (limit_s - lower) / (upper - lower))
    return float(len(ranges))


def _age_label(lower: float, upper: float) -> str:
    return units.age(Span(lower, upper))


def _short(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"
