"""Every arm against full LoRA, and against other rivals, trained for as much time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .estimates import Estimate, estimate, paired
from .run import Run

SCORES = ("accuracy", "loss")
"""Those that every run has, and arms are compared by."""

EXACT = "exact"
"""The score that only runs of language models have, and not those that were made before it was."""

FULL = "full"
"""The arm that skips nothing."""

RIVALS = ("freeze", "random")
"""Arms that every other one is compared with, beside full LoRA."""

TIMING = 0.03
"""By how much a measured time may be wrong, as a share of full LoRA's: a verdict has to hold at either end."""

MARGIN = 0.005
"""What makes no difference, as a share of full LoRA's loss: that of the goal."""


@dataclass(frozen=True)
class Timing:
    """What arms were measured to take.

    Attributes:
        arms: ``step`` and ``backward`` of each as ratios to full LoRA, which is 1 itself.
        forward: what a forward takes at most, as a share of full LoRA's step; NaN if that is not known.
    """

    arms: Mapping[str, Mapping[str, float]]
    forward: float = math.nan

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> Timing:
        """Read what the phase "time" has written; nothing is known of nothing."""
        reference = written.get("reference")
        forward = 1 - reference["backward_s"] / reference["step_s"] if reference else math.nan
        return cls(written.get("arms", {}), forward)

    def backward(self, arm: str) -> float:
        """Return what an arm's backward takes."""
        return self._ratio(arm, "backward")

    def time(self, run: Run) -> float:
        """Return what a run takes, extra forwards included, as a share of full LoRA's of length 1."""
        extra = run.extra_forwards / run.steps * self.forward if run.extra_forwards else 0.0
        return run.length * (self._ratio(run.arm, "step") + extra)

    def _ratio(self, arm: str, part: str) -> float:
        return 1.0 if arm == FULL else self.arms.get(arm, {}).get(part, math.nan)


@dataclass(frozen=True)
class Point:
    """One arm at one length.

    Attributes:
        arm: its name.
        length: its steps as a share of those of the longest full run.
        time: its measured time, as a share of that of a full run of length 1; see :meth:`Timing.time`.
        backward: its backward's, as a share of that of a full run of the same length.
        seeds: those that it was run with.
        shut: mean share of the adapters that were shut.
        scores: of the arm; that of :data:`EXACT` is NaN if no run has it.
        gains: over full LoRA of as much time and the same seed. Higher is better for accuracy, lower for loss. NaN
            where full LoRA was not measured around that time with all of the seeds.
        beside_full: the same over full LoRA of length 1, whatever it takes.
        rivals: what its loss is over that of each of :data:`RIVALS` after as much time, in the same way.
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
    rivals: Mapping[str, Estimate]
    verdict: str


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


def nearly_at_time(curve: Mapping[float, float], time: float) -> float:
    """Return the same; up to :data:`TIMING` outside of the curve the score at its end."""
    inside = min(max(time, min(curve, default=math.nan)), max(curve, default=math.nan))
    return at_time(curve, inside) if abs(inside - time) <= TIMING else math.nan


def points(runs: Sequence[Run], timing: Timing) -> list[Point]:
    """Return every arm at every length, by arm and length.

    Args:
        runs: of one task.
        timing: what its arms take.
    """
    keys = sorted({(run.arm, run.length) for run in runs}, key=lambda key: (key[0] != FULL, *key))
    return [_point([run for run in runs if (run.arm, run.length) == key], runs, timing) for key in keys]


def _point(same: Sequence[Run], runs: Sequence[Run], timing: Timing) -> Point:
    arm, length = same[0].arm, same[0].length
    is_full = arm == FULL
    time = statistics.fmean(map(timing.time, same))

    def gain(score: str, at: float) -> Estimate:
        return paired([run.scores[score] - at_time(_curve(FULL, run.seed, score, runs, timing), at) for run in same])

    def over(rival: str) -> Estimate:
        if arm in (FULL, rival):
            return estimate([])
        return paired(
            [run.scores["loss"] - nearly_at_time(_curve(rival, run.seed, "loss", runs, timing), time) for run in same]
        )

    shut = statistics.fmean(map(_shut, same))
    beside = gain("loss", length)
    differs = beside.mean != 0 or beside.error > 0  # or it is not known
    longest = 1.0 if time <= 1.0 + TIMING else math.inf  # a step that takes no more than full LoRA's, for all we know
    around = [gain("loss", min(at, longest)) for at in (time - TIMING, time, time + TIMING)]
    return Point(
        arm,
        length,
        time,
        timing.backward(arm),
        tuple(sorted(run.seed for run in same)),
        shut,
        {score: estimate([run.scores.get(score, math.nan) for run in same]) for score in (*SCORES, EXACT)},
        {score: gain(score, math.nan if is_full else min(time, longest)) for score in SCORES},
        {score: gain(score, math.nan if is_full else 1.0) for score in SCORES},
        {rival: over(rival) for rival in RIVALS},
        "" if is_full else verdict(around, full_loss(runs)) if differs else "shuts nothing",
    )


def _curve(arm: str, seed: int, score: str, runs: Sequence[Run], timing: Timing) -> dict[float, float]:
    """Return an arm's score by time, of one seed."""
    mine = [run for run in runs if (run.arm, run.seed) == (arm, seed)]
    return {timing.time(run): run.scores[score] for run in mine}


def _shut(run: Run) -> float:
    return statistics.fmean(run.masks[index].count("0") / len(run.sites) for index in run.schedule)


def full_loss(runs: Sequence[Run]) -> float:
    """Return the mean loss of full LoRA's longest runs; NaN if there is none."""
    full = [run for run in runs if run.arm == FULL]
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
