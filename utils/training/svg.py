"""Small charts as SVG text; colours and fonts are the page's (classes s0, s1, … axis, grid)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 10, 34
TICKS = 4
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line with a dot per point.

    Parameters
    ----------
    notes
        What a reader sees on pointing at each dot; its value if nothing is given.
    weights
        How much each point counts, from 0 to 1: its dot's size.
    """

    name: str
    points: Sequence[Point]
    notes: Sequence[str] = ()
    weights: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A linear scale from values to a range of pixels."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    percent: bool = False

    def __call__(self, value: float) -> float:
        """Pixel of a value, to a tenth."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def label(self, value: float) -> str:
        """A tick's value as text."""
        return f"{value * 100:.4g} %" if self.percent else f"{value:.4g}"


def nice_ticks(low: float, high: float, count: int = TICKS) -> tuple[float, ...]:
    """Round values, about `count` of them, from at most `low` to at least `high`."""
    spread = (high - low) or abs(high) or 1.0
    size = 10.0 ** math.floor(math.log10(spread / count))
    step = next(size * factor for factor in STEPS if size * factor >= spread / count * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, 2 - math.floor(math.log10(step)))
    return tuple(round(k * step, digits) for k in range(first, max(last, first + 1) + 1))


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str,
    percent: bool = False,
    mark: float | None = None,
) -> str:
    """Lines over whole numbers from 1, such as epochs.

    Parameters
    ----------
    label
        What the chart is, for those who cannot see it.
    percent
        Whether values are shares.
    mark
        Where on the x axis a vertical line stands.
    """
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    last = max(xs)
    whole = sorted({round(tick) for tick in nice_ticks(1, max(last, 2), 5)})
    x_ticks = tuple(float(tick) for tick in whole if 1 <= tick <= last)
    y_ticks = nice_ticks(min(ys, default=0.0), max(ys, default=1.0))
    x = Axis(low=0.5, high=last + 0.5, start=LEFT, end=WIDTH - RIGHT, ticks=x_ticks or (1.0,))
    y = Axis(
        low=y_ticks[0], high=y_ticks[-1], start=HEIGHT - BOTTOM, end=TOP, ticks=y_ticks,
        percent=percent,
    )  # fmt: skip
    parts = [*_frame(x, y, x_label)]
    if mark is not None:
        parts.append(_line((x(mark), y.start), (x(mark), y.end), "mark"))
    for place, line in enumerate(series):
        parts += _drawn(line, place, x, y)
    return _svg(parts, HEIGHT, label)


def reliability_chart(series: Sequence[Series], counts: Sequence[Sequence[int]]) -> str:
    """Accuracy over confidence, against the diagonal, and how many rows each bin has.

    Parameters
    ----------
    series
        Points (mean confidence, accuracy) of the bins that have rows.
    counts
        For each of `series` the rows of every bin.
    """
    plot, bars = 230, 60
    quarter = (0.0, 0.25, 0.5, 0.75, 1.0)
    x = Axis(low=0, high=1, start=LEFT, end=WIDTH - RIGHT, ticks=quarter, percent=True)
    y = Axis(low=0, high=1, start=plot, end=TOP, ticks=quarter, percent=True)
    parts = [*_frame(x, y, "")]
    parts.append(_line((x(0), y(0)), (x(1), y(1)), "mark"))
    for place, line in enumerate(series):
        parts += _drawn(line, place, x, y)
    top = max((max(rows) for rows in counts), default=0) or 1
    base = plot + 22 + bars
    height = Axis(low=0, high=top, start=base, end=base - bars, ticks=(0, top))
    for place, rows in enumerate(counts):
        parts += _bars(rows, place, len(counts), x, height)
    parts.append(_line((LEFT, base), (WIDTH - RIGHT, base), "axis"))
    parts.append(_text(LEFT - 6, base - bars + 8, f"{top:,}", "end"))
    parts.append(_text(LEFT - 6, base, "rows", "end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, base + 18, "confidence", "middle"))
    return _svg(parts, base + 26, "Reliability: accuracy over confidence, and rows per bin")


def _frame(x: Axis, y: Axis, x_label: str) -> Iterator[str]:
    for tick in y.ticks:
        yield _line((x.start, y(tick)), (x.end, y(tick)), "grid")
        yield _text(x.start - 6, y(tick) + 4, y.label(tick), "end")
    yield _line((x.start, y.start), (x.end, y.start), "axis")
    for tick in x.ticks:
        yield _text(x(tick), y.start + 15, x.label(tick), "middle")
    if x_label:
        yield _text((x.start + x.end) / 2, y.start + 30, x_label, "middle")


def _drawn(line: Series, place: int, x: Axis, y: Axis) -> Iterator[str]:
    path = " ".join(f"{x(a)},{y(b)}" for a, b in line.points)
    yield f'<polyline class="line s{place}" points="{path}"/>'
    notes = line.notes or [f"{line.name}: {y.label(b)}" for _, b in line.points]
    weights = line.weights or [0.5] * len(line.points)
    for (a, b), note, weight in zip(line.points, notes, weights, strict=True):
        yield (
            f'<circle class="dot s{place}" cx="{x(a)}" cy="{y(b)}" r="{1.5 + 3 * weight:.1f}">'
            f"<title>{escape(note)}</title></circle>"
        )


def _bars(rows: Sequence[int], place: int, places: int, x: Axis, y: Axis) -> Iterator[str]:
    room = (x.end - x.start) / len(rows)
    width = round((room - 3) / places, 1)
    for bin_, count in enumerate(rows):
        if count:
            left = round(x.start + bin_ * room + 1.5 + place * width, 1)
            size = max(1.0, round(y.start - y(count), 1))
            yield (
                f'<rect class="bar s{place}" x="{left}" y="{round(y.start - size, 1)}" '
                f'width="{width}" height="{size}"><title>{count:,} rows</title></rect>'
            )


def _line(start: Point, end: Point, kind: str) -> str:
    return f'<line class="{kind}" x1="{start[0]}" y1="{start[1]}" x2="{end[0]}" y2="{end[1]}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], height: int, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )
