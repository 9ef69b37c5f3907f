"""The picture of a run: of all sizes, with whatever names, or one line that says why there is none."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from step_logs import written

from skiplora_fx.cli import main
from skiplora_fx.plot import _figure, plot
from skiplora_fx.read_log import read_log
from skiplora_fx.step_log import StepLog

pytest.importorskip("matplotlib")


def drawn(path: Path) -> Any:
    from matplotlib.image import imread

    return imread(path)


def only(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "log.jsonl", 6)
    assert main(["plot", str(tmp_path / "log.jsonl")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'log.png'}\n"
    picture = drawn(tmp_path / "log.png")
    assert picture.shape[0] > 300
    assert picture.shape[1] == 1320
    assert picture[..., :3].std() > 0.05
    assert only(tmp_path) == ["log.jsonl", "log.png"]


@pytest.mark.parametrize(("sites", "steps"), [(1, 1), (3, 5), (60, 900)])
def test_pictures_of_all_sizes(tmp_path: Path, sites: int, steps: int) -> None:
    log = StepLog(tmp_path / "log.jsonl")
    for step in range(steps):
        rows = [(f"m.layers.{site // 3}.l{site % 3}", float(site + step), 0.0, step % 2 == 1) for site in range(sites)]
        log.step(step, rows)
    log.close()
    plot(log.path, tmp_path / "log.svg")
    assert ElementTree.parse(tmp_path / "log.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize("ratio", [0.0, math.nan, math.inf])
def test_a_picture_of_what_never_had_a_ratio(tmp_path: Path, ratio: float) -> None:
    log = StepLog(tmp_path / "log.jsonl")
    log.step(0, [("a", 0.0, 0.0, True), ("b", ratio, 0.0, True)], backward_seconds=math.inf)
    log.note(0, {"loss": math.inf})
    log.close()
    plot(log.path, tmp_path / "log.png")
    assert (tmp_path / "log.png").stat().st_size > 1000


ODD = ["a$b", r"$\frac{$", r"\alpha_{", "tab\there", "line\nbreak", "nul\0", "\ud800", "", " ", "层.0", "%s{}", "_x"]
ODD += ["x" * 500]


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "$log_{$.jsonl"
    log = StepLog(path)
    log.step(0, [(name, 0.5, 0.1, True) for name in ODD], policy="$x^")
    log.close()
    for ending in ("svg", "png", "pdf"):
        assert main(["plot", str(path), "-o", str(tmp_path / f"log.{ending}")]) == 0
    ElementTree.parse(tmp_path / "log.svg")
    assert drawn(tmp_path / "log.png").shape[1] == 1320


def test_a_picture_says_which_run_it_is_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(written(tmp_path / "log.jsonl", 5), 2)
    assert main(["plot", str(path)]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'log.png'}, run 2 of 2 (--run chooses)\n"
    assert main(["plot", str(path), "--run", "1", "-o", str(tmp_path / "first.svg")]) == 0
    assert "run 1 of 2" in capsys.readouterr().out
    assert "run 1 of 2" in (tmp_path / "first.svg").read_text()
    assert main(["plot", str(path), "--run", "3"]) == 2
    assert "holds 2 runs, 1 to 2; there is no run 3" in capsys.readouterr().err


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Return the one line that the command ends with."""
    assert main(["plot", *map(str, argv)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("skiplora plot: ")
    return err


def test_bad_logs_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.jsonl"
    assert "cannot be read as a log: No such file" in refused(capsys, tmp_path / "no.jsonl")
    assert "Is a directory" in refused(capsys, tmp_path)
    path.write_text("")
    assert "is empty" in refused(capsys, path)
    path.write_text('{"loss": 1}\n')
    assert "is no skiplora log" in refused(capsys, path)
    text = written(tmp_path / "good.jsonl").read_text()
    path.write_text(text.replace("0.25", '"high"'))
    assert "line 2: " in refused(capsys, path)
    os.truncate(path, 1 << 40)
    assert "is larger than 512 MiB" in refused(capsys, path)
    assert "is larger than 1 MiB" in refused(capsys, path, "--max-mib", 1)
    assert only(tmp_path) == ["good.jsonl", "log.jsonl"]


def test_bad_pictures_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "log.jsonl")
    assert "does not end as a picture does; one of " in refused(capsys, path, "-o", tmp_path / "log.xyz")
    (tmp_path / "folder.png").mkdir()
    assert "folder.png cannot be written: Is a directory" in refused(capsys, path, "-o", tmp_path / "folder.png")
    assert "cannot be written: No such file" in refused(capsys, path, "-o", tmp_path / "no" / "log.png")
    assert only(tmp_path) == ["folder.png", "log.jsonl"]


def test_a_run_of_which_no_adapter_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = StepLog(tmp_path / "log.jsonl")
    log.step(0, [])
    log.close()
    assert "names no site" in refused(capsys, log.path)


def test_a_log_is_not_drawn_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "log.png")
    before = path.read_bytes()
    assert "is the log itself" in refused(capsys, path)
    assert path.read_bytes() == before


def test_a_picture_that_fails_half_way_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    def fail(figure: Any, file: Any, **kwargs: Any) -> None:
        file.write(b"half")
        raise RuntimeError("in the middle")

    written(tmp_path / "log.jsonl")
    (tmp_path / "log.png").write_text("the old one")
    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        plot(tmp_path / "log.jsonl", tmp_path / "log.png")
    assert (tmp_path / "log.png").read_text() == "the old one"
    assert only(tmp_path) == ["log.jsonl", "log.png"]


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_steps_are_whole_numbers(tmp_path: Path, steps: int) -> None:
    figure = _figure(read_log(written(tmp_path / "log.jsonl", steps)), "log")
    time = figure.axes[2]
    ticks = [tick for tick in time.get_xticks() if -0.5 <= tick <= steps - 0.5]
    assert ticks
    assert all(tick == int(tick) for tick in ticks)


def test_what_was_not_logged_is_said_to_be_lacking(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "log.jsonl")
    log.step(0, [("a", 0.5, 0.1, True)])
    log.close()
    _, loss, time = _figure(read_log(log.path), "log").axes[:3]
    for axes in (loss, time):
        assert [text.get_text() for text in axes.texts] == ["none was logged"]
        assert not len(axes.get_yticks())


def test_a_link_to_a_picture_stays_a_link(tmp_path: Path) -> None:
    written(tmp_path / "log.jsonl")
    (tmp_path / "link.svg").symlink_to(tmp_path / "real.svg")
    plot(tmp_path / "log.jsonl", tmp_path / "link.svg")
    assert (tmp_path / "link.svg").is_symlink()
    ElementTree.parse(tmp_path / "real.svg")


def test_a_picture_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    written(tmp_path / "log.jsonl")
    plot(tmp_path / "log.jsonl", tmp_path / "log.svg")
    assert (tmp_path / "log.svg").stat().st_mode == (tmp_path / "log.jsonl").stat().st_mode
