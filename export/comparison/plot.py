"""Accuracy over latency, the plot that everyone draws by hand: intervals, names, and the front."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .results import Comparison, Entry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDE_RANGE = 3
"""Slowest over fastest from which on latencies stand on a logarithmic axis."""
_VERY_WIDE_RANGE = 12
"""Right end over left end of a logarithmic axis from which on it has three ticks a decade, not seven."""
_FONT_SIZE = 9.5
"""Size of the names, points."""
_NEAR, _ROW = 8, 7
"""From a point to its name, and between the heights that are tried, pixels."""

_Box = tuple[float, float, float, float]
"""Left, lower, right and upper end, pixels."""


@dataclass(frozen=True)
class Colours:
    """The colours of a plot."""

    ink: str
    soft: str
    faint: str
    front: str
    """The networks that none beats, and the line through them."""
    other: str


LIGHT = Colours(ink="#1d2733", soft="#5d6b7a", faint="#dde3ea", front="#1b7837", other="#8c6bb1")
DARK = Colours(ink="#e6ebf0", soft="#a3b0bd", faint="#36414d", front="#6fce8f", other="#b89ad6")


def plot_of(comparison: Comparison, colours: Colours = LIGHT, *, narrow: bool = False) -> bytes:
    """The plot as SVG, on nothing, so that it takes the page's background.

    Args:
        comparison: has a network at least whose `Entry.point` is known.
        colours: for a light or a dark page.
        narrow: for a telephone.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 4.4) if narrow else (9.4, 5.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    shown = [entry for entry in comparison.entries if entry.point is not None]
    front = [entry.network for entry in comparison.front]
    _draw_axes(axes, shown, colours, comparison.counts[comparison.split])
    stairs = [entry.point for entry in comparison.front if entry.point is not None]
    axes.step(
        *([took for took, _ in stairs], [100 * accuracy for _, accuracy in stairs]),
        where="post",
        color=colours.front,
        linewidth=1.2,
        alpha=0.6,
        zorder=1,
    )
    for entry in shown:
        on_front = entry.network in front
        took, low, accuracy, high = _place(entry)
        axes.errorbar(
            *([took], [accuracy]),
            yerr=[[accuracy - low], [high - accuracy]],
            fmt="o" if on_front else "s",
            color=colours.front if on_front else colours.other,
            markersize=7 if on_front else 5.5,
            elinewidth=1,
            capsize=3,
            zorder=3 if on_front else 2,
        )
    named = sorted(shown, key=lambda entry: entry.network not in front)
    _name_points(figure, axes, named, front, stairs, colours)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True)
    return buffer.getvalue()


def _draw_axes(axes: Axes, shown: list[Entry], colours: Colours, images: int) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    times = [took for took, *_ in map(_place, shown)]
    if max(times) > _WIDE_RANGE * min(times):
        axes.set_xscale("log")
        low, high = min(times) / 1.25, max(times) * 1.35
        steps = (1, 2, 5) if high > _VERY_WIDE_RANGE * low else (1, 1.5, 2, 3, 4, 5, 7)
        ticks = [step * 10.0**power for power in range(-3, 6) for step in steps]
        axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        low, high = min(times) * 0.85, max(times) * 1.15
    axes.set_xlim(low, high)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(y=0.1)
    axes.set_xlabel("median latency of an image, milliseconds", color=colours.ink)
    axes.set_ylabel(f"accuracy on {images} images, % (95 % interval)", color=colours.ink)
    axes.grid(color=colours.faint, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=colours.soft, length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(colours.faint)


def _place(entry: Entry) -> tuple[float, float, float, float]:
    """Milliseconds, and the lower end, the value and the upper end of the accuracy, per cent."""
    assert entry.point is not None
    assert entry.scores is not None
    took, accuracy = entry.point
    interval = entry.scores.intervals["accuracy"]
    low, high = (accuracy, accuracy) if interval is None else (interval.low, interval.high)
    return took, 100 * min(low, accuracy), 100 * accuracy, 100 * max(high, accuracy)


def _name_points(
    figure: Figure,
    axes: Axes,
    entries: list[Entry],
    front: list[str],
    stairs: list[tuple[float, float]],
    colours: Colours,
) -> None:
    """Writes each name where it covers least: beside its point, or farther off with a line to it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what is written from now on moves nothing
    inside = axes.get_window_extent(renderer).extents
    places, taken = [], list[_Box]()
    for entry in entries:
        took, *accuracies = _place(entry)
        (x, bottom), (_, y), (_, top) = (axes.transData.transform((took, each)) for each in accuracies)
        places.append((x, y))
        taken += [(x - 5, y - 5, x + 5, y + 5), (x - 1, bottom, x + 1, top)]
    for (left, level), (right, _) in pairwise(stairs):
        (x, y), (end, _) = (axes.transData.transform((took, 100 * level)) for took in (left, right))
        taken.append((x, y - 1, end, y + 1))
    for entry, place in zip(entries, places, strict=True):
        took, _, accuracy, _ = _place(entry)
        on_front = entry.network in front
        style: dict[str, Any] = {
            "fontsize": _FONT_SIZE,
            "fontweight": "bold" if on_front else "normal",
            "color": colours.front if on_front else colours.ink,
        }
        sample = axes.text(took, accuracy, entry.network, **style)
        extent = sample.get_window_extent(renderer)
        sample.remove()
        boxes = {offset: _box(place, offset, extent.width, extent.height) for offset in _offsets()}
        dx, dy = min(boxes, key=lambda offset: _covered(boxes[offset], taken, inside))
        taken.append(boxes[dx, dy])
        axes.annotate(
            entry.network,
            (took, accuracy),
            (dx * 72 / figure.dpi, dy * 72 / figure.dpi),
            textcoords="offset points",
            ha="left" if dx > 0 else "right",
            va="center",
            arrowprops={"arrowstyle": "-", "color": colours.soft, "linewidth": 0.6, "shrinkB": 4}
            if abs(dy) > 2 * _ROW
            else None,
            zorder=4,
            **style,
        )


def _offsets() -> Iterator[tuple[float, float]]:
    """Where a name may stand from its point, pixels, the nearest first."""
    for rows in range(9):
        for dy in dict.fromkeys((rows * _ROW, -rows * _ROW)):
            yield from ((_NEAR, dy), (-_NEAR, dy))


def _box(place: tuple[float, float], offset: tuple[float, float], width: float, height: float) -> _Box:
    """Where a name of that size stands."""
    x, y = place[0] + offset[0], place[1] + offset[1]
    left = x if offset[0] > 0 else x - width
    return left, y - height / 2, left + width, y + height / 2


def _covered(box: _Box, taken: list[_Box], inside: _Box) -> float:
    """How much a box covers of others, and how much of it lies outside, square pixels."""
    return sum(_shared(box, other) for other in taken) + _shared(box, box) - _shared(box, inside)


def _shared(one: _Box, other: _Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0
