"""The table and the picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quality_parts.store import Store
from tabulate import tabulate

from .growth import exponent, settled
from .measuring import ARMS
from .points import Size, sizes

Point = Mapping[str, Any]
"""What :func:`~.measuring.measure` returned."""


@dataclass(frozen=True)
class Measure:
    """What a curve is of.

    Attributes:
        name: with the unit.
        of: what it is of a point and an arm.
        arms: that have it; those that share a compile have it once.
        digits: after the point in the table.
    """

    name: str
    of: Callable[[Point, str], float]
    arms: Sequence[str]
    digits: int


@dataclass(frozen=True)
class Curve:
    """A measure of an arm by the size along an axis."""

    axis: str
    measure: Measure
    arm: str
    values: dict[int, float]

    @property
    def exponent(self) -> float:
        """See :func:`exponent`; of a ratio, which does not grow with the model, NaN."""
        return math.nan if "ratio" in self.measure.name else exponent(settled(self.axis, self.values))


def _first_step(clock: str) -> Callable[[Point, str], float]:
    return lambda point, arm: point["arms"][arm]["first step"][clock]


def _first_step_ratio(point: Point, arm: str) -> float:
    cost = _first_step("cpu")
    return cost(point, arm) / cost(point, "inductor")


def _steps(clock: str) -> Callable[[Point, str], float]:
    return lambda point, arm: 1e3 * statistics.median(point["arms"][arm]["steps"][clock])


def _step_ratio(point: Point, arm: str) -> float:
    mine, theirs = (point["arms"][name]["steps"]["wall"] for name in (arm, "inductor"))
    return statistics.median(one / other for one, other in zip(mine, theirs, strict=True))


def _peak(point: Point, arm: str) -> float:
    return point["arms"][arm]["peak"] / 2**20


_COMPILED = ("inductor", "skiplora", "oracle")
_OURS = ("skiplora",)

MEASURES = (
    Measure("first step, CPU s", _first_step("cpu"), _COMPILED, 1),
    Measure("first step, ratio to inductor", _first_step_ratio, _OURS, 2),
    Measure("first step, s by the clock", _first_step("wall"), _COMPILED, 1),
    Measure("step, CPU ms", _steps("cpu"), ARMS, 2),
    Measure("step, ratio to inductor", _step_ratio, ARMS[1:], 2),
    Measure("step, ms by the clock", _steps("wall"), ARMS, 2),
    Measure("peak MiB", _peak, ARMS, 2),
    Measure("regions", lambda point, arm: point["regions"], _OURS, 0),
    Measure("branches compiled", lambda point, arm: point["branches"], _OURS, 0),
    Measure("nodes of the backward", lambda point, arm: point["backward nodes"], _OURS, 0),
)

DRAWN = ("first step, CPU s", "step, CPU ms", "peak MiB", "regions", "branches compiled")


def report(store: Store, base: Size, axes: Mapping[str, Sequence[int]]) -> str:
    """Return the tables as Markdown, and write them to ``table.md`` and the picture to ``curves.png`` in the store."""
    found = {axis: list(curves(store, base, axis, values)) for axis, values in axes.items()}
    found = {axis: along for axis, along in found.items() if along}
    text = "\n\n".join(_table(axis, along) for axis, along in found.items())
    (store.folder / "table.md").write_text(text + "\n")
    if found:
        draw(found, store.folder / "curves.png")
    return text


def curves(store: Store, base: Size, axis: str, values: Sequence[int]) -> Iterator[Curve]:
    """Yield the curves along an axis, of the points that are there; none of an axis of one point."""
    read = {getattr(size, axis): store.read(size.name) for size in sizes(base, axis, values)}
    points = {value: point for value, point in read.items() if point is not None}
    if len(points) < 2:
        return
    for measure in MEASURES:
        for arm in measure.arms:
            of = {value: measure.of(point, arm) for value, point in points.items() if arm in point["arms"]}
            if of:
                yield Curve(axis, measure, arm, of)


def _table(axis: str, along: Sequence[Curve]) -> str:
    values = list(dict.fromkeys(value for curve in along for value in curve.values))
    rows = [[curve.measure.name, curve.arm, *_cells(curve, values), _said(curve.exponent, 2)] for curve in along]
    headers = ["measure", "runner", *(f"{axis} {value}" for value in values), "exponent"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _cells(curve: Curve, values: Sequence[int]) -> list[str]:
    return [_said(curve.values.get(value, math.nan), curve.measure.digits) for value in values]


def _said(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def draw(found: Mapping[str, Sequence[Curve]], path: Path) -> None:
    """Draw a row of panels for each axis, both scales logarithmic, with what linear growth would look like."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure(figsize=(3.2 * len(DRAWN), 3 * len(found)), layout="constrained")
    panels = figure.subplots(len(found), len(DRAWN), squeeze=False)
    for row, (axis, along) in zip(panels, found.items(), strict=True):
        for panel, name in zip(row, DRAWN, strict=True):
            for curve in along:
                if curve.measure.name == name:
                    _draw_curve(panel, curve)
            panel.set(xscale="log", yscale="log", xlabel=axis, title=name)
            panel.set_xticks(list(along[0].values))
            panel.xaxis.set_major_formatter(ScalarFormatter())
            panel.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(*panels[0][2].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
    figure.savefig(path, dpi=90)


def _draw_curve(panel: Any, curve: Curve) -> None:
    place = ARMS.index(curve.arm)
    panel.plot(
        list(curve.values),
        list(curve.values.values()),
        label=curve.arm,
        marker="osv^"[place],
        color=("black", "tab:blue", "tab:orange", "tab:green")[place],
    )
    if curve.arm == "skiplora":
        last = max(curve.values)
        linear = [curve.values[last] * value / last for value in curve.values]
        panel.plot(list(curve.values), linear, color="grey", linestyle=":", label="linear")
