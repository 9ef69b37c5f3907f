"""The picture of a run: which adapters mattered, which were skipped, and what that did to loss and time."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import UsageError
from .read_log import Run, read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 400
"""The most columns that are drawn; more steps are drawn several to one."""
_LABELS = 48
"""The most rows that are labelled one by one; of more, each block is."""
_MEDIAN_OVER = 9
"""Steps over which the time of a backward is smoothed."""


def plot(log: str | Path, out: str | Path) -> None:
    """Draw a log of steps: sites over steps, coloured by M and hatched where shut; loss and backward time below.

    Args:
        log: what :func:`~skiplora_fx.attach` or the callback wrote.
        out: a file whose ending says the format: ``.png``, ``.pdf``, ``.svg``.

    Raises:
        UsageError: matplotlib is missing, ``log`` is no such log or holds no step, or ``out`` has an ending that is no
            picture's.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError('matplotlib is not installed: pip install "skiplora-fx[plot]"') from error
    run = read_log(log)
    figure = Figure(figsize=(11, 2.2 + min(0.16 * len(run.sites), 8.0) + 2.2), layout="constrained")
    _check_ending(figure, out)
    heights = [min(max(0.16 * len(run.sites), 1.5), 8.0), 1.1, 1.1]
    gates, loss, time = figure.subplots(3, 1, sharex=True, height_ratios=heights)
    _draw_gates(figure, gates, run)
    _draw_loss(loss, run.losses)
    _draw_time(time, run.steps, run.backward_seconds)
    time.set_xlabel("optimizer step")
    time.set_xlim(run.steps[0] - 0.5, run.steps[-1] + 0.5)
    figure.suptitle(f"{Path(log).name}: {_share(run.open):.0%} of {len(run.sites)} adapters' backwards skipped")
    figure.savefig(out, dpi=120)


def _check_ending(figure: Any, out: str | Path) -> None:
    known = figure.canvas.get_supported_filetypes()
    ending = Path(out).suffix.removeprefix(".").lower()
    if ending not in known:
        raise UsageError(f"{str(out)!r} does not end as a picture does; one of {', '.join(sorted(known))} is meant")


def _share(opens: Tensor) -> float:
    known = ~torch.isnan(opens)
    return float((opens[known] == 0).float().mean()) if bool(known.any()) else 0.0


def _draw_gates(figure: Any, axes: Axes, run: Run) -> None:
    from matplotlib.colors import LogNorm

    edges, ratios, shut = _binned(run)
    positive = ratios[(ratios > 0) & torch.isfinite(ratios)]
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (0.1, 1.0)
    shown = ratios.clamp(min=low)  # a log has no colour for 0
    mesh = axes.pcolormesh(
        edges,
        torch.arange(len(run.sites) + 1) - 0.5,
        shown.numpy(),
        norm=LogNorm(low, max(high, low * 1.01)),
        cmap="viridis",
    )
    for row in range(len(run.sites)):
        spans = [(edges[begin], edges[end] - edges[begin]) for begin, end in _runs(shut[row].tolist())]
        axes.broken_barh(spans, (row - 0.5, 1), facecolor="none", edgecolor="white", linewidth=0, hatch="/////")
    bar = figure.colorbar(mesh, ax=axes, pad=0.01)
    bar.set_label("M = ‖Δh‖ / ‖h‖")
    ticks = _labels(run.sites)
    axes.set_yticks([position for position, _ in ticks], [label for _, label in ticks], fontsize=6)
    axes.set_title("hatched: shut", fontsize=8, loc="left")


def _binned(run: Run) -> tuple[list[float], Tensor, Tensor]:
    """Return the edges of the columns, and for each site and column its mean M, and whether it was mostly shut."""
    width = math.ceil(len(run.steps) / _COLUMNS)
    chunks = [slice(begin, begin + width) for begin in range(0, len(run.steps), width)]
    edges = [run.steps[chunk.start] - 0.5 for chunk in chunks] + [run.steps[-1] + 0.5]
    ratios = torch.stack([run.ratio[chunk].nanmean(0) for chunk in chunks], dim=1)
    opens = torch.stack([run.open[chunk].nanmean(0) for chunk in chunks], dim=1)
    return edges, ratios, opens < 0.5


def _runs(marks: Sequence[bool]) -> list[tuple[int, int]]:
    """Return where each run of True begins, and where it has ended."""
    runs, begin = [], 0
    for mark, group in itertools.groupby(marks):
        end = begin + len(list(group))
        if mark:
            runs.append((begin, end))
        begin = end
    return runs


def _labels(names: Sequence[str]) -> list[tuple[int, str]]:
    """Return labels of rows, without what all names begin with; one for each block where there are too many rows."""
    parts = [name.removesuffix(" [default]").split(".") for name in names]
    common = 0
    while all(len(part) > common + 1 for part in parts) and len({part[common] for part in parts}) == 1:
        common += 1
    labels = [".".join(part[common:]) for part in parts]
    if len(names) <= _LABELS:
        return list(enumerate(labels))
    numbers = [next((part for part in label.split(".") if part.isdigit()), label) for label in labels]
    return [(row, number) for row, number in enumerate(numbers) if not row or numbers[row - 1] != number]


def _draw_loss(axes: Axes, losses: Mapping[int, float]) -> None:
    axes.plot(list(losses), list(losses.values()), linewidth=1, marker="." if len(losses) < 60 else "")
    _dress(axes, "loss")


def _draw_time(axes: Axes, steps: Sequence[int], seconds: Sequence[float]) -> None:
    """Draw each backward as a dot, and a line through medians over some steps: a machine's mood is not the run's."""
    known = [(step, 1000 * value) for step, value in zip(steps, seconds, strict=True) if math.isfinite(value)]
    _dress(axes, "backward, ms")
    if not known:
        return
    steps, times = zip(*known, strict=True)
    half = _MEDIAN_OVER // 2
    medians = [statistics.median(times[max(at - half, 0) : at + half + 1]) for at in range(len(times))]
    axes.plot(steps, times, linestyle="", marker=".", markersize=2, alpha=0.4)
    axes.plot(steps, medians, linewidth=1.2)
    later = medians[half + 1 :] or medians  # the first step compiles, and would flatten all others
    axes.set_ylim(0, 1.5 * max(later) or 1.0)


def _dress(axes: Axes, label: str) -> None:
    axes.set_ylabel(label, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
