"""Lines are appended whole, to a file that is the log's own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from step_logs import ROWS, lines, written

from skiplora_fx import UsageError
from skiplora_fx.read_log import read_log
from skiplora_fx.step_log import StepLog


@pytest.mark.parametrize("back", [1, 5, 30])
def test_a_line_that_a_kill_cut_is_dropped_when_the_run_goes_on(tmp_path: Path, back: int) -> None:
    path = written(tmp_path / "log.jsonl", 3)
    os.truncate(path, path.read_bytes().rindex(b"\n", 0, -1) - back)  # in the middle of the last step
    whole = path.read_bytes().rpartition(b"\n")[0] + b"\n"
    with pytest.warns(UserWarning, match=r"log\.jsonl.*last line was cut off"):
        written(path, 2, start=2)
    assert path.read_bytes().startswith(whole)
    lines(path)
    assert read_log(path).steps == [0, 1, 2, 3]


def test_a_cut_line_longer_than_a_block(tmp_path: Path) -> None:
    path = written(tmp_path / "log.jsonl", 2)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 2, "ratio": [' + b"0.5, " * 100_000)
    with pytest.warns(UserWarning, match="cut off"):
        written(path, 1, start=2)
    assert path.read_bytes().startswith(whole)
    assert read_log(path).steps == [0, 1, 2]


def test_a_last_line_longer_than_any_is_not_read(tmp_path: Path) -> None:
    path = written(tmp_path / "log.jsonl", 2)
    whole = path.stat().st_size
    os.truncate(path, whole + 2**26 + 1)
    log = StepLog(path)
    for _ in range(2):
        with pytest.raises(UsageError, match="cannot be written: its last line has 67108865 bytes and no end"):
            log.step(2, ROWS)
    assert path.stat().st_size == whole + 2**26 + 1


def test_a_header_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"format": "skipl')
    with pytest.warns(UserWarning, match="cut off"):
        written(path, 1)
    assert read_log(path).steps == [0]


def test_a_whole_line_without_its_newline_is_kept(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = written(tmp_path / "log.jsonl", 2)
    os.truncate(path, path.stat().st_size - 1)  # as an editor leaves it
    written(path, 1, start=2)
    assert [str(warning.message) for warning in recwarn] == []
    run = read_log(path)
    assert run.losses == {0: 2.0, 1: 1.0, 2: 0.0}


class Recorded:
    """A file, and what each write to it was given."""

    def __init__(self, file: io.FileIO) -> None:
        self.file = file
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.writes.append(data)
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_a_line_is_one_write_however_long(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "log.jsonl")
    log.step(0, ROWS)
    assert log._file._file is not None
    recorded = Recorded(log._file._file)
    log._file._file = recorded  # type: ignore[assignment]  # looks on at what is written
    log.step(1, [(f"layers.{site}", 0.1, 0.2, True) for site in range(5000)])
    log.note(1, {"loss": 1.0})
    log.close()
    assert len(recorded.writes) == 3  # the sites, the step, the loss
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in recorded.writes)
    assert len(recorded.writes[1]) > 50_000


def test_lines_are_on_disk_as_soon_as_they_are_written(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "log.jsonl")
    log.step(0, ROWS)
    assert read_log(log.path).steps == [0]
    log.close()


FULL = """
import resource, signal, sys
sys.path.insert(0, {tests!r})
from step_logs import ROWS
from skiplora_fx.step_log import StepLog
log = StepLog({path!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for step in range(1000):
    log.step(step, ROWS)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of a file")
def test_a_disk_that_is_full_leaves_whole_lines_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    code = FULL.format(tests=str(Path(__file__).parent), path=str(path))
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "OSError" in done.stderr.splitlines()[-1]
    assert str(path) in done.stderr.splitlines()[-1]
    lines(path)
    assert read_log(path).steps


def test_what_is_no_place_for_a_log_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"log='.*' cannot be written: .*[Ii]s a directory"):
        StepLog(tmp_path)
    with pytest.raises(UsageError, match=r"log='.*file/log\.jsonl' cannot be written: .*(exists|Not a directory)"):
        StepLog(tmp_path / "file" / "log.jsonl")
    with pytest.raises(UsageError, match=r"log=True is no path"):
        StepLog(True)  # type: ignore[arg-type]  # the mistake
    with pytest.raises(UsageError, match=r"log='' is no path"):
        StepLog("")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_a_pipe_is_refused_without_waiting_for_its_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="cannot be written: it is no regular file"):
        StepLog(tmp_path / "pipe")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything is root's to write")
def test_a_file_that_is_somebody_elses(tmp_path: Path) -> None:
    path = written(tmp_path / "log.jsonl")
    path.chmod(0o444)
    with pytest.raises(UsageError, match=r"log\.jsonl' cannot be written: Permission denied"):
        StepLog(path)


FOREIGN = ["precious", "precious\n", '{"loss": 1}\n', '{"format": "other"}\n', "[]\n", "\0" * 99]


@pytest.mark.parametrize("text", FOREIGN)
def test_a_file_that_is_no_log_is_not_touched(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine").write_text(text)
    with pytest.raises(UsageError, match=r"log='.*mine' cannot be written: it is no skiplora log"):
        StepLog(tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == text


def test_a_log_stays_where_it_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = StepLog("log.jsonl")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    log.step(0, ROWS)
    log.close()
    assert read_log(tmp_path / "log.jsonl").steps == [0]
