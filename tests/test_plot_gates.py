"""What the picture's rows and columns are: names in order, steps where they were, and nothing where nothing was."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from step_logs import ROWS

from skiplora_fx.logged_run import Run
from skiplora_fx.plot_gates import Columns
from skiplora_fx.plot_labels import plain, row_labels
from skiplora_fx.read_log import read_log
from skiplora_fx.step_log import StepLog

SHUT = [("a", 0.5, math.inf, False)]
OPEN = [("a", 1.5, 0.0, True)]


def logged(path: Path, steps: dict[int, list[tuple[str, float, float, bool]]]) -> Run:
    log = StepLog(path)
    for step, rows in steps.items():
        log.step(step, rows)
    log.close()
    return read_log(path)


def test_a_step_is_a_column_and_steps_that_are_lacking_are_empty(tmp_path: Path) -> None:
    columns = Columns.of(logged(tmp_path / "log.jsonl", {2: SHUT, 3: OPEN, 6: SHUT}))
    assert columns.edges == [1.5, 2.5, 3.5, 4.5, 5.5, 6.5]
    torch.testing.assert_close(
        columns.ratio, torch.tensor([[0.5, 1.5, math.nan, math.nan, 0.5]], dtype=torch.float64), equal_nan=True
    )
    assert columns.shut.tolist() == [[True, False, False, False, True]]


def test_many_steps_share_columns(tmp_path: Path) -> None:
    steps = {step: [("a", float(step % 2), 0.0, step % 4 == 0), ("b", math.nan, 0.0, True)] for step in range(1000)}
    columns = Columns.of(logged(tmp_path / "log.jsonl", steps))
    assert columns.ratio.shape == (2, 334)  # three to one
    assert columns.edges[:2] == [-0.5, 2.5]
    assert columns.ratio[0, :2].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert columns.ratio[1].isnan().all()
    assert columns.shut[0].any()
    assert not columns.shut[1].any()


def test_an_infinite_ratio_is_one(tmp_path: Path) -> None:
    columns = Columns.of(logged(tmp_path / "log.jsonl", {0: [("a", math.inf, 0.0, True)]}))
    assert columns.ratio.tolist() == [[math.inf]]


def test_a_site_that_comes_late_stands_where_the_forward_has_it(tmp_path: Path) -> None:
    between = [ROWS[0], ("late", 0.5, 0.0, True), ROWS[1]]
    first = [("first", 0.5, 0.0, True), *between]
    run = logged(tmp_path / "log.jsonl", {0: ROWS, 1: between, 2: ROWS, 3: first})
    assert run.sites == ["first", "layers.0", "late", "layers.1"]
    assert run.ratio[:, 2].isnan().tolist() == [True, False, True, False]


def test_rows_are_labelled_by_what_differs() -> None:
    names = ["m.layers.0.q [default]", "m.layers.0.v [default]", "m.layers.1.q [extra]"]
    assert row_labels(names) == [(0, "0.q"), (1, "0.v"), (2, "1.q [extra]")]


def test_many_rows_are_labelled_by_their_blocks_at_the_middle() -> None:
    names = [f"m.layers.{layer}.{name}" for layer in range(32) for name in "qkv"]
    assert row_labels(names)[:3] == [(1, "0"), (4, "1"), (7, "2")]


@pytest.mark.parametrize("name", ["m.layers.{}.q", "n{}x"])
def test_labels_never_overlap(name: str) -> None:
    assert len(row_labels([name.format(row) for row in range(500)])) <= 48


def test_a_label_is_one_short_line_that_can_be_encoded() -> None:
    assert plain("a\tb\n$\0\ud800层") == "a\\tb\\n$\\x00\\ud800层"
    assert plain("x" * 500 + "y") == "x" * 19 + "…" + "x" * 18 + "y"
