"""A log is read back, its runs told apart, and what is no log refused with the line."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from step_logs import ROWS, lines, written

from skiplora_fx import UsageError
from skiplora_fx.read_log import read_log
from skiplora_fx.step_log import StepLog

HEADER = '{"format": "skiplora-log", "version": 1}\n'


def test_reading_gives_back_what_was_written(tmp_path: Path) -> None:
    run = read_log(written(tmp_path / "log.jsonl"))
    assert (run.sites, run.steps) == (["layers.0", "layers.1"], [0, 1, 2])
    assert run.ratio[:, 0].tolist() == [0.25] * 3
    assert run.ratio[:, 1].isnan().all()
    assert run.threshold[0].tolist() == [math.inf, 0.1]
    assert run.open[0].tolist() == [0.0, 1.0]
    assert (run.grad_norm, run.backward_seconds) == ([1.5] * 3, [0.01] * 3)
    assert run.losses == {0: 2.0, 1: 1.0, 2: 0.0}
    assert (run.number, run.runs, run.policy) == (1, 1, None)


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "log.jsonl")
    text = path.read_text()
    cut = text.rindex('"step": 2, "ratio"') + 20
    path.write_text(text[:cut])
    assert read_log(path).steps == [0, 1]


def test_the_last_of_several_runs_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "log.jsonl", 5, ratio=0.25)
    written(path, 2, ratio=0.75)
    last = read_log(path)
    assert (last.steps, last.losses, last.number, last.runs) == ([0, 1], {0: 2.0, 1: 1.0}, 2, 2)
    assert last.ratio[:, 0].tolist() == [0.75] * 2
    first = read_log(path, run=1)
    assert (first.steps, first.number) == ([0, 1, 2, 3, 4], 1)
    assert first.ratio[:, 0].tolist() == [0.25] * 5


@pytest.mark.parametrize("number", [0, 3, -1])
def test_a_run_that_is_not_there(tmp_path: Path, number: int) -> None:
    written(written(tmp_path / "log.jsonl"))
    with pytest.raises(UsageError, match=rf"log\.jsonl holds 2 runs, 1 to 2; there is no run {number}"):
        read_log(tmp_path / "log.jsonl", run=number)


def test_a_run_that_came_to_no_step_is_none(tmp_path: Path) -> None:
    path = written(tmp_path / "log.jsonl")
    log = StepLog(path)
    log.note(0, {"loss": 9.0})
    log.close()
    run = read_log(path)
    assert (run.number, run.runs, run.losses[0]) == (1, 1, 2.0)


def test_the_later_record_of_a_step_that_was_repeated_after_a_resume_counts(tmp_path: Path) -> None:
    path = written(tmp_path / "log.jsonl", 4)
    log = StepLog(path)
    log.step(2, [("layers.0", 0.75, 0.0, True), ("layers.1", 0.5, 0.0, True)])
    log.note(2, {"loss": 7.0})
    log.close()
    run = read_log(path)
    assert (run.steps, run.runs) == ([0, 1, 2, 3], 1)
    assert run.ratio[2].tolist() == [0.75, 0.5]
    assert run.losses == {0: 2.0, 1: 1.0, 2: 7.0, 3: -1.0}


def resumed(path: Path, run: str, step: int) -> None:
    log = StepLog(path)
    log.resume(run)
    log.step(step, ROWS)
    log.close()


def test_a_run_whose_checkpoint_is_known_goes_on_though_another_came_between(tmp_path: Path) -> None:
    path = written(tmp_path / "log.jsonl", 3)
    first = lines(path)[0]["run"]
    written(path, 2)
    resumed(path, first, 3)
    assert (read_log(path).steps, read_log(path).number) == ([0, 1, 2, 3], 1)  # what was written last
    assert read_log(path, run=2).steps == [0, 1]


def test_a_run_resumed_into_another_runs_file_is_a_run_of_its_own(tmp_path: Path) -> None:
    path = written(tmp_path / "log.jsonl", 3)
    resumed(path, "another", 2)
    assert [read_log(path, run=number).steps for number in (1, 2)] == [[0, 1, 2], [2]]


def test_a_resumed_run_may_have_a_file_of_its_own(tmp_path: Path) -> None:
    assert read_log(written(tmp_path / "log.jsonl", 2, start=5)).steps == [5, 6]


def test_runs_that_are_written_at_once_are_told_apart(tmp_path: Path) -> None:
    logs = [StepLog(tmp_path / "log.jsonl") for _ in range(2)]
    for step in range(3):
        for number, log in enumerate(logs):
            log.step(step, [(f"of.{number}", float(number), 0.0, True)])
    for log in logs:
        log.close()
    for number in (0, 1):
        run = read_log(tmp_path / "log.jsonl", run=number + 1)
        assert (run.sites, run.ratio.tolist()) == ([f"of.{number}"], [[float(number)]] * 3)


def test_a_site_that_comes_later(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "log.jsonl")
    log.step(0, ROWS[:1])
    log.step(1, ROWS)
    log.close()
    run = read_log(log.path)
    assert run.sites == ["layers.0", "layers.1"]
    assert torch.isnan(run.open[0]).tolist() == [False, True]


V1 = HEADER + (
    '{"sites": ["a"]}\n{"step": 0, "ratio": [0.5], "threshold": [0], "open": [1]}\n{"step": 0, "loss": 1.5}\n'
)


def test_a_log_of_version_1_is_one_run(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(V1 + V1.removeprefix(HEADER))
    run = read_log(path)
    assert (run.sites, run.steps, run.losses, run.runs) == (["a"], [0], {0: 1.5}, 1)


def test_a_log_of_version_1_can_be_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(V1)
    written(path, 2, start=1)
    assert (read_log(path).steps, read_log(path).runs) == ([0, 1, 2], 1)
    written(path, 2)
    assert (read_log(path).steps, read_log(path).runs) == ([0, 1], 2)


def step(**changed: Any) -> str:
    line = {"step": 0, "ratio": [1], "threshold": [1], "open": [1], **changed}
    return HEADER + '{"sites": ["a"]}\n' + json.dumps(line) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (HEADER, "holds no step"),
        ("[]\n", "is no skiplora log: its first line"),
        ("precious", "is no skiplora log: its first line"),
        ("precious\n", "is no skiplora log: its first line"),
        ("\0" * 100, "is no skiplora log: its first line"),
        ('{"sites": ["a"]}\n', "is no skiplora log: its first line"),
        ('{"format": "skiplora-log", "version": 9}\n', "line 1: .*version 9; this reads 1 and 2"),
        (HEADER + "not json\n{}\n", "line 2: not JSON"),
        (HEADER + "NaN\n", "line 2: not JSON .*NaN"),
        (HEADER + "[" * 100_000 + "\n", "line 2: not JSON .*nested"),
        (HEADER + "9" * 5000 + "\n", "line 2: not JSON"),
        (HEADER + "\n", "line 2: not JSON"),
        (HEADER + "[1]\n", "line 2: not a line of a skiplora log: an object is meant, found list"),
        (HEADER + '{"temperature": 3}\n', "line 2: not a line of a skiplora log: .*temperature"),
        (HEADER + '{"run": "x", "step": 1, "loss": 1}\n', "line 2: .*run 'x' was not begun"),
        (HEADER + '{"run": [], "step": 1, "loss": 1}\n', "line 2: .*run"),
        (HEADER + '{"step": 0, "ratio": [1], "threshold": [1], "open": [1]}\n', "line 2: .*ratio has 1 values for 0 s"),
        (HEADER + '{"sites": 3}\n', "line 2: .*sites: a list of names is meant, found int"),
        (HEADER + '{"sites": [3]}\n', "line 2: .*sites: each is a name, found 3"),
        (step(ratio=["high"]), "line 3: .*ratio of a: a number is meant, found 'high'"),
        (step(ratio=["1.5"]), "line 3: .*ratio of a: a number is meant, found '1.5'"),
        (step(ratio=[[1]]), "line 3: .*ratio of a: a number is meant, found \\[1\\]"),
        (step(ratio=[True]), "line 3: .*ratio of a: a number is meant, found True"),
        (step(ratio=[10**400]), "line 3: .*ratio of a: .*too large"),
        (step(ratio=3), "line 3: .*ratio: a list is meant, found int"),
        (step(ratio=[-1]), "line 3: .*ratio of a: .*at least 0 is meant, found -1"),
        (step(ratio=[1, 2]), "line 3: .*ratio has 2 values for 1 sites"),
        (step(open=[2]), "line 3: .*open of a: 0 or 1 is meant, found 2"),
        (step(step="x"), "line 3: .*step: a whole number .*found 'x'"),
        (step(step=-1), "line 3: .*step: a whole number .*found -1"),
        (step(step=1.5), "line 3: .*step: a whole number .*found 1.5"),
        (step(step=10**30), "line 3: .*step: a whole number .*found 1000"),
        (step(grad_norm="x"), "line 3: .*grad_norm: a number is meant, found 'x'"),
        (step() + '{"step": 0, "loss": "low"}\n', "line 4: .*loss: a number is meant, found 'low'"),
        (step() + '{"loss": 1}\n', "line 4: .*not a line of a skiplora log"),
    ],
    ids=lambda text: str(text)[-40:],
)
def test_what_is_no_log_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(UsageError, match=message) as raised:
        read_log(tmp_path / "log.jsonl")
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 400 + len(str(tmp_path))


def test_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(HEADER.encode() + b'{"sites": ["\xff"]}\n')
    with pytest.raises(UsageError, match="line 2: not JSON"):
        read_log(tmp_path / "log.jsonl")


def test_a_file_that_is_not_there_or_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.jsonl cannot be read as a log: No such file"):
        read_log(tmp_path / "nothing.jsonl")
    with pytest.raises(UsageError, match="cannot be read as a log: Is a directory"):
        read_log(tmp_path)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "log.jsonl")
    with pytest.raises(UsageError, match=r"log\.jsonl is larger than .* MiB, the most that is read; .*max_bytes"):
        read_log(path, max_bytes=200)
    os.truncate(path, 1 << 40)  # takes no place on the disk
    with pytest.raises(UsageError, match=r"log\.jsonl is larger than 512 MiB"):
        read_log(path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no endless file")
def test_an_endless_file_is_refused() -> None:
    with pytest.raises(UsageError, match="/dev/zero is larger than"):
        read_log("/dev/zero", max_bytes=1 << 20)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_a_log_comes_through_a_pipe(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, written(tmp_path / "log.jsonl").read_bytes())
    os.close(writing)
    assert read_log(f"/dev/fd/{reading}").steps == [0, 1, 2]
    os.close(reading)
