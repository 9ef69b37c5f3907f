"""Every arm against full LoRA that is trained for as much time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .training import Run

SCORES = ("accuracy", "loss")
"""Those that every run has, and arms are compared by."""

EXACT = "exact"
"""The score that only runs of language models have, and not those that were made before it was."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, and its standard error: NaN of a single seed, both NaN of none."""

    mean: float
    error: float


@dataclass(frozen=True)
class Point:
    """One arm at one length.

    Attributes:
        arm: its name.
        length: its steps as a share of those of the longest full run.
        time: its measured time, as a share of that of a full run of length 1.
        backward: its backward's, as a share of that of a full run of the same length.
        seeds: those that it was run with.
        shut: mean share of the adapters that were shut.
        scores: of the arm; that of :data:`EXACT` is NaN if no run has it.
        gains: over full LoRA of as much time and the same seed. Higher is better for accuracy, lower for loss. NaN
            where full LoRA was not measured around that time.
    """

    arm: str
    length: float
    time: float
    backward: float
    seeds: tuple[int, ...]
    shut: float
    scores: Mapping[str, Estimate]
    gains: Mapping[str, Estimate]


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean and standard error of the numbers among ``values``."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Estimate(math.nan, math.nan)
    error = statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else math.nan
    return Estimate(statistics.fmean(known), error)


def at_time(curve: Mapping[float, float], time: float) -> float:
    """Return the score at ``time`` on the straight lines between a curve's points; NaN outside of them."""
    below = max((known for known in curve if known <= time), default=math.nan)
    above = min((known for known in curve if known >= time), default=math.nan)
    if math.isnan(below) or math.isnan(above):
        return math.nan
    if below == above:
        return curve[below]
    share = (time - below) / (above - below)
    return (1 - share) * curve[below] + share * curve[above]


def points(runs: Sequence[Run], timing: Mapping[str, Mapping[str, float]]) -> list[Point]:
    """Return every arm at every length, by arm and length.

    Args:
        runs: of one task.
        timing: ``step`` and ``backward`` of each arm as ratios to full LoRA, which is 1 itself.
    """
    keys = sorted({(run.arm, run.length) for run in runs}, key=lambda key: (key[0] != "full", *key))
    return [_point([run for run in runs if (run.arm, run.length) == key], runs, timing) for key in keys]


def _point(same: Sequence[Run], runs: Sequence[Run], timing: Mapping[str, Mapping[str, float]]) -> Point:
    arm, length = same[0].arm, same[0].length
    is_full = arm == "full"
    costs = {"step": 1.0, "backward": 1.0} if is_full else timing.get(arm, {"step": math.nan, "backward": math.nan})
    time = length * costs["step"]
    gains = {
        score: estimate(
            [] if is_full else [run.scores[score] - at_time(_full(runs, run.seed, score), time) for run in same]
        )
        for score in SCORES
    }
    return Point(
        arm,
        length,
        time,
        costs["backward"],
        tuple(sorted(run.seed for run in same)),
        statistics.fmean(_shut(run) for run in same),
        {score: estimate([run.scores.get(score, math.nan) for run in same]) for score in (*SCORES, EXACT)},
        gains,
    )


def _full(runs: Sequence[Run], seed: int, score: str) -> dict[float, float]:
    return {run.length: run.scores[score] for run in runs if run.arm == "full" and run.seed == seed}


def _shut(run: Run) -> float:
    return statistics.fmean(run.masks[index].count("0") / len(run.sites) for index in run.schedule)


def verdict(gain: Estimate) -> str:
    """Say how a gain in loss compares with its own standard error."""
    if math.isnan(gain.error):
        return "not known"
    if abs(gain.mean) < 2 * gain.error:
        return "level"
    return "better" if gain.mean < 0 else "worse"
