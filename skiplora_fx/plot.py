"""The picture of a run: which adapters mattered, which were skipped, and what that did to loss and time."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import FileError, UsageError
from .json_lines import MAX_BYTES
from .logged_run import Run
from .plot_gates import draw_gates
from .plot_labels import plain
from .read_log import read_log
from .whole_file import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MEDIAN_OVER = 9
"""Steps over which the time of a backward is smoothed."""


def plot(log: str | Path, out: str | Path, run: int | None = None, *, max_bytes: int = MAX_BYTES) -> Run:
    """Draw a log of steps: sites over steps, coloured by M and hatched where shut; loss and backward time below.

    Args:
        log: what :func:`~skiplora_fx.attach` or the callback wrote.
        out: a file whose ending says the format: ``.png``, ``.pdf``, ``.svg``. It is replaced by a whole picture.
        run: which of the log's runs, from 1; the one that was written last if not given.
        max_bytes: the size of the largest log that is read.

    Returns:
        The run that was drawn.

    Raises:
        UsageError: matplotlib is missing.
        FileError: ``log`` is no such log, or holds no step or no such run; ``out`` cannot be written, or does not end
            as a picture does.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError('matplotlib is not installed: pip install "skiplora-fx[plot]"') from error
    ending = _checked_ending(Figure(), log, out)
    drawn = read_log(log, run, max_bytes=max_bytes)
    if not drawn.sites:
        raise FileError(f"{log} names no site in run {drawn.number}: no gated adapter had a backward in its steps")
    figure = _figure(drawn, Path(log).name)
    with whole_file(out) as file:
        figure.savefig(file, format=ending, dpi=120)
    return drawn


def _checked_ending(figure: Figure, log: str | Path, out: str | Path) -> str:
    known = figure.canvas.get_supported_filetypes()
    ending = Path(out).suffix.removeprefix(".").lower()
    if ending not in known:
        raise FileError(f"{str(out)!r} does not end as a picture does; one of {', '.join(sorted(known))} is meant")
    if os.path.realpath(out) == os.path.realpath(log):
        raise FileError(f"{out} is the log itself; give the picture another name")
    return ending


def _figure(run: Run, name: str) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 2.2 + min(0.16 * len(run.sites), 8.0) + 2.2), layout="constrained")
    heights = [min(max(0.16 * len(run.sites), 1.5), 8.0), 1.1, 1.1]
    gates, loss, time = figure.subplots(3, 1, sharex=True, height_ratios=heights)
    draw_gates(figure, gates, run)
    _draw_loss(loss, run.losses)
    _draw_time(time, run.steps, run.backward_seconds)
    time.set_xlabel("optimizer step")
    time.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    time.set_xlim(run.steps[0] - 0.5, run.steps[-1] + 0.5)
    figure.suptitle(_title(run, name), parse_math=False)
    return figure


def _title(run: Run, name: str) -> str:
    which = f", run {run.number} of {run.runs}" if run.runs > 1 else ""
    policy = f", policy {plain(run.policy)}" if run.policy else ""
    skipped = f"{_share(run.open):.0%} of {len(run.sites)} adapters' backwards skipped"
    return f"{plain(name)}{which}{policy}: {skipped}"


def _share(opens: Tensor) -> float:
    known = ~torch.isnan(opens)
    return float((opens[known] == 0).float().mean()) if bool(known.any()) else 0.0


def _draw_loss(axes: Axes, losses: Mapping[int, float]) -> None:
    known = {step: loss for step, loss in losses.items() if math.isfinite(loss)}
    _dress(axes, "loss", known)
    axes.plot(list(known), list(known.values()), linewidth=1, marker="." if len(known) < 60 else "")


def _draw_time(axes: Axes, steps: Sequence[int], seconds: Sequence[float]) -> None:
    """Draw each backward as a dot, and a line through medians over some steps: a machine's mood is not the run's."""
    known = {step: 1000 * value for step, value in zip(steps, seconds, strict=True) if math.isfinite(value)}
    _dress(axes, "backward, ms", known)
    if not known:
        return
    times = list(known.values())
    half = _MEDIAN_OVER // 2
    medians = [statistics.median(times[max(at - half, 0) : at + half + 1]) for at in range(len(times))]
    axes.plot(list(known), times, linestyle="", marker=".", markersize=2 if len(times) > 200 else 5, alpha=0.4)
    axes.plot(list(known), medians, linewidth=1.2)
    later = medians[half + 1 :] or medians  # the first step compiles, and would flatten all others
    axes.set_ylim(0, 1.5 * max(later) or 1.0)


def _dress(axes: Axes, label: str, known: Mapping[int, float]) -> None:
    axes.set_ylabel(label, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    if not known:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "none was logged", transform=axes.transAxes, ha="center", va="center", color="0.5")
