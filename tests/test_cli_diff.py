"""``skiplora diff`` shows what the passes do to a model, or how two snapshots differ; its exit status says whether."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import models
import pytest
from step_logs import written

from skiplora_fx.cli import main

pytestmark = pytest.mark.xdist_group("cli_diff")  # all tests read what two processes wrote
SHELL = [sys.executable, "-W", "ignore", "-m", "skiplora_fx.cli", "diff"]
SMALL = ["--r", "2", "--length", "8", "--layers", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    models.llama(2).config.save_pretrained(path)
    (path / "q.json").write_text(shell(str(path), *SMALL, "--json", "--target-modules", "q_proj").stdout)
    done = shell(str(path), *SMALL, "--json", str(path / "qv.json"))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    return path


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SHELL, *arguments], capture_output=True, text=True, check=False)


def test_a_model_is_shown_as_a_unified_diff(folder: Path, capsys: Any) -> None:
    assert main(["diff", str(folder), *SMALL, "--stage", "gated"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("--- graph_0/captured\n+++ graph_0/gated\n@@")
    assert err == ""


def test_a_snapshot_says_the_same_as_its_model(folder: Path, capsys: Any) -> None:
    assert main(["diff", str(folder), *SMALL]) == 1
    shown = capsys.readouterr().out
    assert main(["diff", str(folder / "qv.json")]) == 1
    assert capsys.readouterr().out == shown


def test_the_exit_status_says_whether_anything_differs(folder: Path, capsys: Any) -> None:
    q, qv = str(folder / "q.json"), str(folder / "qv.json")
    assert main(["diff", q, q]) == 0
    assert capsys.readouterr().out == ""
    assert main(["diff", q, qv]) == 1
    assert "--- graph_0/before/captured" in capsys.readouterr().out


def test_json_of_two_snapshots(folder: Path, capsys: Any) -> None:
    q, qv = str(folder / "q.json"), str(folder / "qv.json")
    assert main(["diff", q, qv, "--json", "--only-changed"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert len(data["snapshots"]) == 2
    assert all(set(transition["counts"]) != {"same"} for transition in data["transitions"])


def test_html_is_one_file_with_the_timeline_of_a_log(folder: Path, capsys: Any) -> None:
    log = str(written(folder / "log.jsonl"))
    assert main(["diff", str(folder / "qv.json"), "--html", str(folder / "page.html"), "--log", log]) == 1
    assert capsys.readouterr() == ("", "")
    page = (folder / "page.html").read_text()
    assert page.startswith("<!doctype html>")
    assert '"timeline":{"policy"' in page


def test_colours_are_for_terminals(folder: Path) -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    command = [*SHELL, str(folder / "q.json"), "--stage", "gated"]
    with subprocess.Popen(command, stdout=slave, env=environment) as process:
        os.close(slave)
        shown = b"".join(iter(lambda: _read(master), b""))
    assert process.returncode == 1
    assert b"\x1b[32m+ " in shown


def _read(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:  # how Linux says that the other end is closed
        return b""


def test_whoever_reads_may_stop(folder: Path) -> None:
    command = " ".join([*SHELL, str(folder / "qv.json")])
    done = subprocess.run(f"{command} | head -n 1", shell=True, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("--- graph_0/captured\n", "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["none.json"], "none.json cannot be read"),
        (["a", "b"], "'a' and 'b' are not both .json files"),
        (["a", "b", "c"], "3 arguments"),
        (["{folder}/config.json"], "is no snapshot: 'format' of the file is missing"),
        (["{folder}/q.json", "--stage", "gates"], "there is no stage 'gates'"),
        (["{folder}/q.json", "--site", "none"], "'none' matches no site"),
        (["{folder}/q.json", "--json", "{folder}/no/file.json"], "cannot be written"),
        (["{folder}/q.json", "--html", "{folder}/no/page.html"], "cannot be written"),
        (["{folder}/q.json", "--log", "log.jsonl"], "give --html FILE too"),
        (["{folder}/q.json", "--html", "page.html", "--run", "1"], "give --log FILE too"),
        (["none.json", "--html", "page.html", "--log", "{folder}/config.json"], "config.json is no skiplora log"),
        (["none.json", "--html", "page.html", "--log", "{folder}/log.jsonl", "--run", "99"], "there is no run 99"),
        (["{folder}", "--target-modules", "none"], "PEFT finds none of none"),
    ],
)
def test_an_error_is_one_paragraph_and_2(arguments: list[str], told: str, folder: Path, capsys: Any) -> None:
    written(folder / "log.jsonl")
    assert main(["diff", *(argument.format(folder=folder) for argument in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("skiplora diff: ")
    assert len(err.splitlines()) == 1
    assert told in err
