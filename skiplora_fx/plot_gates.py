"""The upper part of a run's picture: what M was of each adapter at each step, and where its gate was shut."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .logged_run import Run
from .plot_labels import row_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 400
"""The most columns that are drawn; more steps are drawn several to one."""
_TAIL = 0.02
"""Share of the smallest and of the largest M that have no colour of their own: the first steps' would take up most."""


@dataclass(frozen=True)
class Columns:
    """Steps drawn together, as many to each column.

    Attributes:
        edges: of the columns, one more than there are of them.
        ratio: float64 ``[sites, columns]``, the mean M; NaN where there was none, as at steps that the log lacks.
        shut: bool ``[sites, columns]``, whether the gate mostly was.
    """

    edges: list[float]
    ratio: Tensor
    shut: Tensor

    @classmethod
    def of(cls, run: Run) -> Columns:
        """Return the columns of a run."""
        first, last = run.steps[0], run.steps[-1]
        width = math.ceil((last - first + 1) / _COLUMNS)
        count = (last - first) // width + 1
        column = (torch.tensor(run.steps) - first) // width
        edges = [first + width * index - 0.5 for index in range(count + 1)]
        shut = _means(run.open, column, count) < 0.5
        return cls(edges, _means(run.ratio, column, count), shut)


def draw_gates(figure: Any, axes: Axes, run: Run) -> None:
    """Draw sites over steps, coloured by M, hatched where shut, and grey where there was no backward."""
    from matplotlib.colors import LogNorm

    columns = Columns.of(run)
    low, high = colour_range(columns.ratio)
    mesh = axes.pcolormesh(
        columns.edges,
        [row - 0.5 for row in range(len(run.sites) + 1)],
        columns.ratio.clamp(min=low / 2).numpy(),  # a log has no colour for 0
        norm=LogNorm(low, high),
        cmap="viridis",
    )
    axes.set_facecolor("0.85")
    for row, marks in enumerate(columns.shut.tolist()):
        spans = [(columns.edges[begin], columns.edges[end] - columns.edges[begin]) for begin, end in _runs(marks)]
        axes.broken_barh(spans, (row - 0.5, 1), facecolor="none", edgecolor="white", linewidth=0, hatch="/////")
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, extend="both", extendfrac=0.02)
    bar.set_label("M = ‖Δh‖ / ‖h‖")
    rows, labels = zip(*row_labels(run.sites), strict=True)
    axes.set_yticks(rows, labels, fontsize=6, parse_math=False)
    axes.set_title("hatched: shut; grey: no M", fontsize=8, loc="left")


def _means(values: Tensor, column: Tensor, count: int) -> Tensor:
    """Return the means ``[sites, columns]`` of ``[steps, sites]`` over the steps of each column, without NaNs."""
    known = ~torch.isnan(values)
    sums = torch.zeros(count, values.shape[1], dtype=values.dtype)
    sums.index_add_(0, column, values.where(known, 0.0))
    counts = torch.zeros_like(sums).index_add_(0, column, known.to(values.dtype))
    return (sums / counts).T


def colour_range(ratios: Tensor) -> tuple[float, float]:
    """Return the M of the lowest and of the highest colour."""
    positive = ratios[(ratios > 0) & torch.isfinite(ratios)].sort().values
    if not len(positive):
        return 0.1, 1.0
    cut = int(_TAIL * len(positive))
    low, high = float(positive[cut]), float(positive[-1 - cut])
    return low, max(high, low * 1.01)


def _runs(marks: Sequence[bool]) -> list[tuple[int, int]]:
    """Return where each run of True begins, and where it has ended."""
    runs, begin = [], 0
    for mark, group in itertools.groupby(marks):
        end = begin + len(list(group))
        if mark:
            runs.append((begin, end))
        begin = end
    return runs
