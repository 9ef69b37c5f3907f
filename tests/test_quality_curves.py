"""Arms are judged against full LoRA of as much time."""

from __future__ import annotations

import math

import pytest
from quality_parts.curves import Estimate, at_time, estimate, points, verdict
from quality_parts.training import Run


def _run(arm: str, length: float, seed: int, loss: float) -> Run:
    scores = {"loss": loss, "accuracy": 100 - loss}
    return Run(arm, length, seed, 4, scores, ["a", "b"], ["11", "01"], [0, 0, 1, 1], [0.1, 0.1], [])


def test_between_two_points_of_a_curve_lies_a_straight_line() -> None:
    curve = {0.5: 10.0, 1.0: 6.0}
    assert at_time(curve, 0.5) == 10.0
    assert at_time(curve, 0.75) == 8.0
    assert at_time(curve, 1.0) == 6.0


@pytest.mark.parametrize("time", [0.4, 1.1, math.nan])
def test_nothing_is_said_outside_of_a_curve(time: float) -> None:
    assert math.isnan(at_time({0.5: 10.0, 1.0: 6.0}, time))


def test_an_arm_is_compared_seed_by_seed_at_equal_time() -> None:
    full = [_run("full", length, seed, loss + seed) for seed in (0, 1) for length, loss in ((0.5, 10.0), (1.0, 6.0))]
    runs = [*full, _run("micro", 1.0, 0, 7.0), _run("micro", 1.0, 1, 8.0)]
    point = points(runs, {"micro": {"step": 0.75, "backward": 0.6}})[-1]
    assert (point.arm, point.time, point.backward, point.seeds, point.shut) == ("micro", 0.75, 0.6, (0, 1), 0.25)
    assert point.gains["loss"] == Estimate(-1.0, 0.0)
    assert point.gains["accuracy"] == Estimate(1.0, 0.0)


def test_an_arm_that_was_not_timed_is_compared_with_nothing() -> None:
    point = points([_run("full", 1.0, 0, 6.0), _run("micro", 1.0, 0, 7.0)], {})[-1]
    assert math.isnan(point.time)
    assert math.isnan(point.gains["loss"].mean)


def test_the_standard_error_is_that_of_the_mean() -> None:
    assert estimate([1.0, 3.0, math.nan]) == Estimate(2.0, 1.0)
    assert math.isnan(estimate([1.0]).error)


@pytest.mark.parametrize(
    ("gain", "said"),
    [((-0.3, 0.1), "better"), ((0.3, 0.1), "worse"), ((-0.1, 0.1), "level"), ((-0.3, math.nan), "not known")],
)
def test_a_verdict_needs_two_standard_errors(gain: tuple[float, float], said: str) -> None:
    assert verdict(Estimate(*gain)) == said
