"""Every arm against full LoRA, and against other rivals, trained for as much time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
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

RIVALS = ("freeze", "freeze-less", "random")
"""Arms that every other one is compared with, beside full LoRA."""

TIMING = 0.03
"""By how much a measured time may be wrong, as a share of full LoRA's: a verdict has to hold at either end.

Measured anew some days later, with other draws of masks, most arms came out within 0.02, and one 0.07 away; of five
rounds a single mask's step has been 0.06 off. What has few masks wants more rounds.
"""

MARGINS: Mapping[str, Callable[[float], float]] = {"accuracy": lambda full: 0.5, "loss": lambda full: 0.005 * full}
"""What makes no difference to full LoRA's score, as the goal has it: half a point, or 0.5 % of the loss."""

WORSE = {"accuracy": -1, "loss": 1}
"""The sign of a difference that is for the worse."""


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
            where full LoRA was not measured around that time with all of the seeds, see :meth:`Curves.at`.
        beside_full: the same over full LoRA of length 1, whatever it takes.
        rivals: what its loss is over that of each of :data:`RIVALS` after as much time, in the same way, but over
            those seeds with which the rival was measured around that time.
        verdicts: on each score against that of full LoRA of as much time, see :func:`verdict`.
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
    verdicts: Mapping[str, str]


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


class Curves:
    """Every arm's scores against its time, seed by seed.

    Args:
        runs: of one task.
        timing: what its arms take.
    """

    def __init__(self, runs: Iterable[Run], timing: Timing) -> None:
        self._scores: dict[tuple[str, int], dict[float, Mapping[str, float]]] = {}
        for run in runs:
            self._scores.setdefault((run.arm, run.seed), {})[timing.time(run)] = run.scores

    def at(self, arm: str, seed: int, score: str, time: float, off: float = 0.0) -> float:
        """Return a score on the straight lines between an arm's points.

        Args:
            arm: whose score.
            seed: of its runs.
            score: its name.
            time: at which.
            off: by how much that may be wrong: past the curve's ends, and as far as ``time`` itself lies no more than
                :data:`TIMING` outside of them, the score is that at the end.

        Returns:
            The score at ``time + off``; NaN outside of the curve.
        """
        curve = {known: scores[score] for known, scores in self._scores.get((arm, seed), {}).items()}
        first, last = min(curve, default=math.nan), max(curve, default=math.nan)
        if not first - TIMING <= time <= last + TIMING:
            return math.nan
        return at_time(curve, min(max(time + off, first), last))


def points(runs: Sequence[Run], timing: Timing) -> list[Point]:
    """Return every arm at every length, by arm and length.

    Args:
        runs: of one task.
        timing: what its arms take.
    """
    alike: dict[tuple[str, float], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.arm != FULL, run.arm, run.length, run.seed)):
        alike.setdefault((run.arm, run.length), []).append(run)
    whole = [run for run in runs if (run.arm, run.length) == (FULL, 1.0)]
    margins = {
        score: margin(statistics.fmean(run.scores[score] for run in whole) if whole else math.nan)
        for score, margin in MARGINS.items()
    }
    curves = Curves(runs, timing)
    return [_point(same, curves, timing, margins) for same in alike.values()]


def _point(same: Sequence[Run], curves: Curves, timing: Timing, margins: Mapping[str, float]) -> Point:
    arm = same[0].arm
    time = statistics.fmean(map(timing.time, same))

    def differences(rival: str, score: str, at: float, off: float = 0.0) -> list[float]:
        if arm in (FULL, rival):
            return []
        return [run.scores[score] - curves.at(rival, run.seed, score, at, off) for run in same]

    def over_full(score: str, at: float, off: float = 0.0) -> Estimate:
        return paired(differences(FULL, score, at, off))

    beside = over_full("loss", same[0].length)
    differs = beside.mean != 0 or beside.error > 0  # or it is not known

    def judged(score: str) -> str:
        if arm == FULL:
            return ""
        around = [over_full(score, time, off) for off in (-TIMING, 0.0, TIMING)]
        return verdict(around, margins[score], WORSE[score]) if differs else "shuts nothing"

    return Point(
        arm=arm,
        length=same[0].length,
        time=time,
        backward=timing.backward(arm),
        seeds=tuple(run.seed for run in same),
        shut=statistics.fmean(map(_shut, same)),
        scores={score: estimate([run.scores.get(score, math.nan) for run in same]) for score in (*SCORES, EXACT)},
        gains={score: over_full(score, time) for score in SCORES},
        beside_full={score: over_full(score, 1.0) for score in SCORES},
        rivals={rival: estimate(differences(rival, "loss", time)) for rival in RIVALS},
        verdicts={score: judged(score) for score in SCORES},
    )


def _shut(run: Run) -> float:
    return statistics.fmean(run.masks[index].count("0") / len(run.sites) for index in run.schedule)


def verdict(around: Sequence[Estimate], margin: float, worse: int = 1) -> str:
    """Say how an arm's score compares with that of full LoRA of as much time.

    ``better`` or ``worse`` if the confidence intervals say so at each time that the arm may have taken; ``level`` if
    all of them lie within the margin, ``open`` if neither. One of 20 arms that are level is told wrongly.

    Args:
        around: the differences at those times.
        margin: what makes no difference.
        worse: the sign of a difference that is for the worse.
    """
    lows, highs = zip(*(difference.interval for difference in around), strict=True)
    low, high = min(lows), max(highs)
    if any(map(math.isnan, (*lows, *highs))):
        return "not known"
    if low > 0 or high < 0:
        return "worse" if worse * low > 0 else "better"
    return "level" if max(high, -low) <= margin else "open"
