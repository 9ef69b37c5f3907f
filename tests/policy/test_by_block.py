"""Baselines: blocks by chance and in turn."""

from __future__ import annotations

import pytest
from sights import observed, shut

from skiplora_fx.policy import CyclicBlocks, RandomBlocks


def test_random_shuts_each_block_at_the_rate() -> None:
    policy = RandomBlocks(0.3)
    marks = [shut(policy.decide(observed(step))) for step in range(1000)]
    assert [sum(mark[block] == "#" for mark in marks) / 1000 for block in range(8)] == pytest.approx(
        [0.3] * 8, abs=0.05
    )
    assert len(set(marks)) > 100


def test_random_draws_by_the_step_alone() -> None:
    assert RandomBlocks(seed=3).decide(observed(7)) == RandomBlocks(seed=3).decide(observed(7))


def test_random_shuts_a_block_as_a_whole() -> None:
    marks = shut(RandomBlocks(0.5).decide(observed(means=[1.0] * 6, each=2)))
    assert all(marks[2 * block] == marks[2 * block + 1] for block in range(6))


def test_cyclic_moves_a_window() -> None:
    policy = CyclicBlocks(share=0.375, hold=2)
    found = [shut(policy.decide(observed(step))) for step in (0, 1, 2, 4, 6)]
    assert found == ["...#####", "...#####", "###...##", ".#####..", "#...####"]


def test_cyclic_opens_at_least_one() -> None:
    assert shut(CyclicBlocks(share=0.0).decide(observed(3, [1.0] * 3))) == ".##"
