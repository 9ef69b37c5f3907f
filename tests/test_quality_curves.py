"""Arms are judged against full LoRA of as much time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
from quality_parts.curves import Timing, at_time, points, verdict
from quality_parts.estimates import Estimate, estimate
from quality_parts.report import tables
from quality_parts.run import Run


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


FULL = [_run("full", length, seed, loss + seed) for seed in (0, 1, 2) for length, loss in ((0.5, 10.0), (1.0, 6.0))]
TIMING = Timing({"micro": {"step": 0.75, "backward": 0.6}})


def test_an_arm_is_compared_seed_by_seed_at_equal_time() -> None:
    runs = [*FULL, *(_run("micro", 1.0, seed, 7.0 + seed) for seed in (0, 1, 2))]
    point = points(runs, TIMING)[-1]
    assert (point.arm, point.time, point.backward, point.seeds, point.shut) == ("micro", 0.75, 0.6, (0, 1, 2), 0.25)
    assert point.gains["loss"] == Estimate(-1.0, 0.0, 3)
    assert point.gains["accuracy"] == Estimate(1.0, 0.0, 3)
    assert point.beside_full["loss"] == Estimate(1.0, 0.0, 3)
    assert point.verdicts == {"accuracy": "better", "loss": "better"}


def test_nothing_is_said_of_an_arm_if_full_lora_lacks_one_of_its_seeds_there() -> None:
    short = [run for run in FULL if (run.length, run.seed) != (0.5, 2)]
    point = points([*short, *(_run("micro", 1.0, seed, 7.0) for seed in (0, 1, 2))], TIMING)[-1]
    assert math.isnan(point.gains["loss"].mean)
    assert point.beside_full["loss"].seeds == 3
    assert point.verdicts["loss"] == "not known"


def test_an_arm_is_compared_with_its_rivals_at_equal_time() -> None:
    """The frozen half's curve ends at 0.8 of the time; an arm's time may be wrong by 0.03."""
    freeze = [_run("freeze", length, 0, loss) for length, loss in ((0.5, 9.0), (1.0, 7.0))]
    micro = [_run("micro", 1.0, 0, 6.5)]

    def rivals(time: float) -> Mapping[str, Estimate]:
        timing = Timing({"freeze": {"step": 0.8, "backward": 0.5}, "micro": {"step": time, "backward": 0.6}})
        return points([*FULL, *freeze, *micro], timing)[-1].rivals

    assert rivals(0.6)["freeze"].mean == pytest.approx(-1.5)
    assert rivals(0.82)["freeze"].mean == pytest.approx(-0.5)
    assert math.isnan(rivals(0.84)["freeze"].mean)
    assert math.isnan(rivals(0.6)["random"].mean)


def test_rivals_are_compared_by_the_seeds_that_both_have() -> None:
    freeze = [_run("freeze", 1.0, seed, 7.0 + seed) for seed in (0, 1)]
    micro = [_run("micro", 1.0, seed, 6.5 + seed) for seed in (0, 1, 2)]
    timing = Timing({arm: {"step": 0.75, "backward": 0.6} for arm in ("freeze", "micro")})
    found = points([*FULL, *freeze, *micro], timing)
    assert found[-1].rivals["freeze"] == Estimate(-0.5, 0.0, 2)
    assert "-0.500 ± 0.000 (2 seeds)" in tables(found)


def test_an_arm_that_shuts_nothing_gets_no_verdict() -> None:
    """It is full LoRA, to the last digit; what is open and differs all the same, as by hooks, gets one."""
    for above, said in ((0.0, "shuts nothing"), (4.0, "worse")):
        losses = {seed: 6.0 + seed + above for seed in (0, 1, 2)}
        runs = [replace(_run("micro", 1.0, *pair), masks=["11"], schedule=[0]) for pair in losses.items()]
        assert points([*FULL, *runs], TIMING)[-1].verdicts["loss"] == said


@pytest.mark.parametrize(("loss", "said"), [(8.2, "open"), (8.3, "worse"), (7.8, "open"), (7.7, "better")])
def test_a_verdict_holds_for_a_time_that_is_somewhat_wrong(loss: float, said: str) -> None:
    """Full LoRA's loss is 8 at the arm's time, and falls by 0.24 in 0.03 of it."""
    runs = [*FULL, *(_run("micro", 1.0, seed, loss + seed) for seed in (0, 1, 2))]
    assert points(runs, TIMING)[-1].verdicts["loss"] == said


def test_an_arm_that_was_not_timed_is_compared_with_nothing() -> None:
    point = points([*FULL, _run("micro", 1.0, 0, 7.0)], Timing({}))[-1]
    assert math.isnan(point.time)
    assert math.isnan(point.gains["loss"].mean)
    assert point.verdicts["loss"] == "not known"


def test_extra_forwards_take_time() -> None:
    """A quarter of the steps has one more, of 0.4 of a step."""
    timing = Timing.of({"reference": {"step_s": 0.5, "backward_s": 0.3}, "arms": TIMING.arms})
    runs = [replace(_run("micro", 1.0, seed, 8.0), extra_forwards=1, masks=["11"], schedule=[0]) for seed in (0, 1)]
    point = points([*FULL, *runs], timing)[-1]
    assert point.time == pytest.approx(0.75 + 0.4 / 4)
    assert point.verdicts["loss"] != "shuts nothing"


def test_extra_forwards_of_unknown_time_are_compared_with_nothing() -> None:
    point = points([*FULL, replace(_run("micro", 1.0, 0, 8.0), extra_forwards=1)], Timing.of({"arms": TIMING.arms}))[-1]
    assert math.isnan(point.time)


def test_the_standard_error_is_that_of_the_mean() -> None:
    assert estimate([1.0, 3.0, math.nan]) == Estimate(2.0, 1.0, 2)
    assert math.isnan(estimate([1.0]).error)


def test_the_interval_of_three_seeds_is_students() -> None:
    low, high = Estimate(1.0, 0.1, 3).interval
    assert (low, high) == (pytest.approx(1 - 0.4303, abs=1e-4), pytest.approx(1 + 0.4303, abs=1e-4))
    assert all(map(math.isnan, Estimate(1.0, math.nan, 1).interval))


@pytest.mark.parametrize(
    ("mean", "error", "said"),
    [
        (-0.5, 0.1, "better"),
        (-0.4, 0.1, "open"),  # four standard errors are not enough of three seeds
        (0.5, 0.1, "worse"),
        (0.01, 0.002, "worse"),  # little, and surely
        (0.001, 0.002, "level"),
        (0.0, 0.01, "open"),
        (-0.3, math.nan, "not known"),
    ],
)
def test_a_verdict_is_that_of_the_interval(mean: float, error: float, said: str) -> None:
    assert verdict([Estimate(mean, error, 3)] * 3, margin=0.01) == said
    turned = {"better": "worse", "worse": "better"}
    assert verdict([Estimate(mean, error, 3)] * 3, margin=0.01, worse=-1) == turned.get(said, said)
