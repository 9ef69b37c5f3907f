"""A run as lines of JSON: written whole, read back, drawn."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from lora_modules import batch
from two_layers import Two, compiled, sgd, skipped

import skiplora_fx
from skiplora_fx import UsageError
from skiplora_fx.cli import main
from skiplora_fx.plot import plot
from skiplora_fx.read_log import read_log
from skiplora_fx.step_log import StepLog

ROWS = [("layers.0", 0.25, math.inf, False), ("layers.1", math.nan, 0.1, True)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(path: Path, steps: int = 3) -> Path:
    log = StepLog(path)
    for step in range(steps):
        log.step(step, ROWS, grad_norm=1.5, backward_seconds=0.01)
        log.note(step, {"loss": 2.0 - step})
    log.close()
    return path


def test_what_the_lines_are(tmp_path: Path) -> None:
    found = lines(written(tmp_path / "deep" / "log.jsonl", 1))
    assert found == [
        {"format": "skiplora-log", "version": 1},
        {"sites": ["layers.0", "layers.1"]},
        {
            "step": 0,
            "ratio": [0.25, None],
            "threshold": ["inf", 0.1],
            "open": [0, 1],
            "grad_norm": 1.5,
            "backward_seconds": 0.01,
        },
        {"step": 0, "loss": 2.0},
    ]


def test_sites_are_named_again_where_they_change(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "log.jsonl")
    log.step(0, ROWS)
    log.step(1, ROWS)
    log.step(2, ROWS[:1])
    log.close()
    assert [line["sites"] for line in lines(log.path) if "sites" in line] == [["layers.0", "layers.1"], ["layers.0"]]
    run = read_log(log.path)
    assert run.sites == ["layers.0", "layers.1"]
    assert torch.isnan(run.open[2]).tolist() == [False, True]


def test_reading_gives_back_what_was_written(tmp_path: Path) -> None:
    run = read_log(written(tmp_path / "log.jsonl"))
    assert (run.sites, run.steps) == (["layers.0", "layers.1"], [0, 1, 2])
    assert run.ratio[:, 0].tolist() == [0.25] * 3
    assert run.ratio[:, 1].isnan().all()
    assert run.threshold[0].tolist() == [math.inf, 0.1]
    assert run.open[0].tolist() == [0.0, 1.0]
    assert (run.grad_norm, run.backward_seconds) == ([1.5] * 3, [0.01] * 3)
    assert run.losses == {0: 2.0, 1: 1.0, 2: 0.0}


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "log.jsonl")
    text = path.read_text()
    cut = text.rindex('{"step": 2, "ratio"') + 20
    path.write_text(text[:cut])
    assert read_log(path).steps == [0, 1]


def test_a_resumed_run_appends_and_its_steps_count(tmp_path: Path) -> None:
    path = written(tmp_path / "log.jsonl", 4)
    log = StepLog(path)
    log.step(2, [("layers.0", 0.75, 0.0, True), ("layers.1", 0.5, 0.0, True)])
    log.close()
    assert sum("format" in line for line in lines(path)) == 1
    run = read_log(path)
    assert run.steps == [0, 1, 2, 3]
    assert run.ratio[2].tolist() == [0.75, 0.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no step"),
        ('{"format": "skiplora-log", "version": 1}\n', "holds no step"),
        ("[]\n", "is no skiplora log: its first line"),
        ('{"format": "skiplora-log", "version": 9}\n', "of version 9; this reads 1"),
        ('{"format": "skiplora-log", "version": 1}\nnot json\n{}\n', "line 2: not JSON"),
        (
            '{"format": "skiplora-log", "version": 1}\n{"step": 0, "ratio": [1], "threshold": [1], "open": [1]}\n',
            "line 2: not a line of a skiplora log .*1 values for 0 sites",
        ),
        ('{"format": "skiplora-log", "version": 1}\n{"sites": 3}\n', "line 2: not a line of a skiplora log"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_log(tmp_path / "log.jsonl")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.jsonl cannot be read as a log: .*No such file"):
        read_log(tmp_path / "nothing.jsonl")


def train(path: Path, steps: int, **options: Any) -> tuple[list[list[bool]], list[list[float]]]:
    """Train a few logged steps; return which sites were skipped, and the ratios, step by step."""
    torch.manual_seed(0)
    model = compiled(**options)
    optimizer = sgd(model)
    attachment = skiplora_fx.attach(model, optimizer, log=path)
    shut, ratios = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(batch()).sum()
        loss.backward()
        shut.append(skipped(model))
        ratios.append([site.ratio for site in skiplora_fx.sites(model)])
        optimizer.step()
        attachment.note(loss=float(loss.detach()))
    attachment.remove()
    return shut, ratios


def test_a_run_as_it_was(tmp_path: Path) -> None:
    shut, ratios = train(tmp_path / "log.jsonl", 5, policy="multirate", policy_kwargs={"every": 2})
    run = read_log(tmp_path / "log.jsonl")
    assert (run.sites, run.steps) == (["lower", "upper"], [0, 1, 2, 3, 4])
    assert (run.open == 0).tolist() == shut
    torch.testing.assert_close(run.ratio, torch.tensor(ratios, dtype=torch.float64), rtol=1e-5, atol=0)
    assert run.threshold[1].tolist() == [math.inf, 0.0]
    assert all(seconds > 0 for seconds in run.backward_seconds)
    assert all(norm > 0 for norm in run.grad_norm)
    assert list(run.losses) == run.steps


def test_open_means_open_in_any_micro_batch(tmp_path: Path) -> None:
    model = compiled()
    optimizer = sgd(model)
    attachment = skiplora_fx.attach(model, optimizer, log=tmp_path / "log.jsonl")
    model(batch()).sum().backward()
    skiplora_fx.set_threshold(model, 0.0, sites="lower")
    model(batch()).sum().backward()
    optimizer.step()
    attachment.remove()
    assert read_log(tmp_path / "log.jsonl").open.tolist() == [[1.0, 0.0]]


KILLED = """
import sys, os, signal
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_step_log import ROWS
from skiplora_fx.step_log import StepLog
log = StepLog({path!r})
for step in range(1000):
    log.step(step, ROWS)
    if step == 50:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    code = KILLED.format(tests=str(Path(__file__).parent), path=str(path))
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode < 0
    assert path.read_text().endswith("\n")
    assert read_log(path).steps == list(range(51))


def drawn(path: Path) -> Any:
    from matplotlib.image import imread

    return imread(path)


def test_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "log.jsonl", 6, policy="freeze")
    assert main(["plot", str(tmp_path / "log.jsonl")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'log.png'}\n"
    picture = drawn(tmp_path / "log.png")
    assert picture.shape[0] > 300
    assert picture.shape[1] == 1320
    assert picture[..., :3].std() > 0.05


@pytest.mark.parametrize(("sites", "steps"), [(1, 1), (3, 5), (60, 900)])
def test_pictures_of_all_sizes(tmp_path: Path, sites: int, steps: int) -> None:
    log = StepLog(tmp_path / "log.jsonl")
    for step in range(steps):
        rows = [(f"m.layers.{site // 3}.l{site % 3}", float(site + step), 0.0, step % 2 == 1) for site in range(sites)]
        log.step(step, rows)
    log.close()
    plot(log.path, tmp_path / "log.svg")
    assert ElementTree.parse(tmp_path / "log.svg").getroot().tag.endswith("svg")


def test_a_picture_of_what_never_had_a_ratio(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "log.jsonl")
    log.step(0, [("a", 0.0, 0.0, True), ("b", math.nan, 0.0, True)])
    log.close()
    plot(log.path, tmp_path / "log.png")
    assert (tmp_path / "log.png").stat().st_size > 1000


def test_bad_input_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", str(tmp_path / "no.jsonl")]) == 1
    assert "cannot be read as a log" in capsys.readouterr().err
    written(tmp_path / "log.jsonl")
    assert main(["plot", str(tmp_path / "log.jsonl"), "-o", str(tmp_path / "log.xyz")]) == 1
    assert "does not end as a picture does; one of " in capsys.readouterr().err
    assert not (tmp_path / "log.xyz").exists()


def test_a_model_that_is_not_logged_is_not_timed() -> None:
    model = Two()
    model.compile(backend="skiplora", options={"warmup_steps": 0})
    optimizer = sgd(model)
    attachment = skiplora_fx.attach(model, optimizer)
    model(batch()).sum().backward()
    optimizer.step()
    assert attachment.clock.backward_seconds == 0.0
    assert math.isnan(attachment.grad_norm())
