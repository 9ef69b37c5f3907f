"""Every arm against full LoRA that is trained for as much time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import t as student

from .run import Run

SCORES = ("accuracy", "loss")
"""Those that every run has, and arms are compared by."""

EXACT = "exact"
"""The score that only runs of language models have, and not those that were made before it was."""


TIMING = 0.03
"""By how much a measured time may be wrong, as a share of full LoRA's: a verdict has to hold at either end."""

MARGIN = 0.005
"""What makes no difference, as a share of full LoRA's loss: that of the goal."""

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, and its standard error: NaN of a single seed, both NaN of none.

    Attributes:
        seeds: how many; 0 if that is not known.
    """

    mean: float
    error: float
    seeds: int = 0

    @property
    def interval(self) -> tuple[float, float]:
        """The confidence interval of the mean, by Student's t: of few seeds it is wide. NaN of fewer than two."""
        if self.seeds < 2:
            return math.nan, math.nan
        half = float(student.ppf((1 + CONFIDENCE) / 2, self.seeds - 1)) * self.error
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class Point:
    """One arm at one length.

    Attributes:
        arm: its name.
        length: its steps as a share of those of the longest full run.
        time: its measured time, extra forwards included, as a share of that of a full run of length 1.
        backward: its backward's, as a share of that of a full run of the same length.
        seeds: those that it was run with.
        shut: mean share of the adapters that were shut.
        scores: of the arm; that of :data:`EXACT` is NaN if no run has it.
        gains: over full LoRA of as much time and the same seed. Higher is better for accuracy, lower for loss. NaN
            where full LoRA was not measured around that time with all of the seeds.
        beside_full: the same over full LoRA of length 1, whatever it takes.
        verdict: on its loss against that of full LoRA of as much time, see :func:`verdict`.
    """

    arm: str
    length: float
    time: float
    backward: float
    seeds: tuple[int, ...]
    shut: float
    scores: Mapping[str, Estimate]
    gains: Mapping[str, Estimate]
    beside_full: Mapping[str, Estimate]
    verdict: str


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean and standard error of the numbers among ``values``."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Estimate(math.nan, math.nan)
    error = statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else math.nan
    return Estimate(statistics.fmean(known), error, len(known))


def paired(differences: Sequence[float]) -> Estimate:
    """Return the mean difference over all seeds; NaN if one of them is unknown, as the others may not stand for it."""
    return estimate([]) if any(map(math.isnan, differences)) else estimate(differences)


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


def points(runs: Sequence[Run], timing: Mapping[str, Mapping[str, float]], forward: float = math.nan) -> list[Point]:
    """Return every arm at every length, by arm and length.

    Args:
        runs: of one task.
        timing: ``step`` and ``backward`` of each arm as ratios to full LoRA, which is 1 itself.
        forward: what the forward takes of full LoRA's step, see :func:`forward_share`.
    """
    keys = sorted({(run.arm, run.length) for run in runs}, key=lambda key: (key[0] != "full", *key))
    return [_point([run for run in runs if (run.arm, run.length) == key], runs, timing, forward) for key in keys]


def forward_share(timing: Mapping[str, Any]) -> float:
    """Return what the forward takes of full LoRA's step; NaN if ``timing`` has no ``reference``.

    One without gradients takes at most as much.
    """
    reference = timing.get("reference")
    return 1 - reference["backward_s"] / reference["step_s"] if reference else math.nan


def _point(
    same: Sequence[Run], runs: Sequence[Run], timing: Mapping[str, Mapping[str, float]], forward: float
) -> Point:
    arm, length = same[0].arm, same[0].length
    is_full = arm == "full"
    costs = {"step": 1.0, "backward": 1.0} if is_full else timing.get(arm, {"step": math.nan, "backward": math.nan})
    extra = statistics.fmean(run.extra_forwards / run.steps for run in same)
    time = length * (costs["step"] + (extra * forward if extra else 0.0))

    def gain(score: str, at: float) -> Estimate:
        return paired([run.scores[score] - at_time(_full(runs, run.seed, score), at) for run in same])

    shut = statistics.fmean(map(_shut, same))
    gains = {score: gain(score, math.nan if is_full else time) for score in SCORES}
    beside_full = {score: gain(score, math.nan if is_full else 1.0) for score in SCORES}
    longest = 1.0 if time <= 1.0 + TIMING else math.inf  # a step that takes no more than full LoRA's, for all we know
    around = [gain("loss", min(at, longest)) for at in (time - TIMING, time, time + TIMING)]
    return Point(
        arm,
        length,
        time,
        costs["backward"],
        tuple(sorted(run.seed for run in same)),
        shut,
        {score: estimate([run.scores.get(score, math.nan) for run in same]) for score in (*SCORES, EXACT)},
        gains,
        beside_full,
        "" if is_full else verdict(around, full_loss(runs)) if shut or extra else "shuts nothing",
    )


def _full(runs: Sequence[Run], seed: int, score: str) -> dict[float, float]:
    return {run.length: run.scores[score] for run in runs if run.arm == "full" and run.seed == seed}


def _shut(run: Run) -> float:
    return statistics.fmean(run.masks[index].count("0") / len(run.sites) for index in run.schedule)


def full_loss(runs: Sequence[Run]) -> float:
    """Return the mean loss of full LoRA's longest runs; NaN if there is none."""
    full = [run for run in runs if run.arm == "full"]
    longest = max((run.length for run in full), default=0.0)
    return statistics.fmean([run.scores["loss"] for run in full if run.length == longest]) if full else math.nan


def verdict(around: Sequence[Estimate], loss: float) -> str:
    """Say how an arm's loss compares with that of full LoRA of as much time.

    ``better`` or ``worse`` if the confidence intervals say so at each time that the arm may have taken; ``level`` if
    all of them lie within the margin, ``open`` if neither. One of 20 arms that are level is told wrongly.

    Args:
        around: the gains at those times.
        loss: full LoRA's, of which the margin is a share.
    """
    lows, highs = zip(*(gain.interval for gain in around), strict=True)
    if any(map(math.isnan, (*lows, *highs))):
        return "not known"
    if max(highs) < 0:
        return "better"
    if min(lows) > 0:
        return "worse"
    return "level" if max(*highs, -min(lows)) <= MARGIN * loss else "open"
