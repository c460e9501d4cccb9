"""Charts as shapes in pixels, so that the page draws them as SVG in its own colours and `figures` as PDF and PNG."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

Point = tuple[float, float]


class Stroke(NamedTuple):
    """A line through points. css: its classes on the page, such as `line c0`, which `figures` has styles for too."""

    points: Sequence[Point]
    css: str
    sentence: str = ""  # shown under the pointer, and read out

    @property
    def path(self) -> str:
        return "M" + "L".join(_place(point) for point in self.points)


class Dots(NamedTuple):
    """Filled circles of one diameter; those on the same pixel are drawn once."""

    points: Sequence[Point]
    diameter: float
    css: str
    sentence: str = ""

    @property
    def path(self) -> str:
        return "".join(f"M{place}h0" for place in dict.fromkeys(_place(point) for point in self.points))


class Block(NamedTuple):
    """A rectangle. strength: how opaque its filling is."""

    corner: Point
    width: float
    height: float
    css: str
    strength: float = 1.0
    sentence: str = ""

    @property
    def path(self) -> str:
        return f"M{_place(self.corner)}h{self.width:g}v{self.height:g}h{-self.width:g}z"


class Label(NamedTuple):
    """A text. css: `tick` in the middle of its place, `tick left` before it, `name` behind it."""

    place: Point
    text: str
    css: str = "tick"


class Chart(NamedTuple):
    """A chart: its shapes from the back to the front, and a legend of (number of the colour, text).

    description: what is drawn, in a sentence for those who do not see it.
    """

    title: str
    description: str
    width: float
    height: float
    shapes: Sequence[Stroke | Dots | Block]
    labels: Sequence[Label]
    legend: Sequence[tuple[int, str]] = ()


def _place(point: Point) -> str:
    return f"{point[0]:.1f} {point[1]:.1f}".replace(".0", "")


def grid_lines(positions: Iterable[float], start: float, end: float, vertical: bool) -> list[Stroke]:
    """The lines of a grid: at each position along one axis, from start to end along the other."""
    ends = (((x, start), (x, end)) if vertical else ((start, x), (end, x)) for x in positions)
    return [Stroke(points, "grid") for points in ends]
