"""Files are written where the user said, and no connection is opened: watched in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytestmark = pytest.mark.xdist_group("files_written")  # all tests look at one run
NAMED = ["again.html", "again.json", "debug", "log.jsonl", "page.html", "picture.png", "snapshot.json"]


class Run(NamedTuple):
    """What a process did: in which folder, which files the package opened to write or moved, what was connected to."""

    root: Path
    written: list[str]
    talked: list[str]

    def left(self, name: str) -> list[str]:
        """Return what lies in a folder of it."""
        return sorted(path.name for path in (self.root / name).iterdir())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("run")
    for name in ("named", "home", "here"):
        (root / name).mkdir()
    environment: dict[str, Any] = {
        **os.environ,
        "HOME": root / "home",
        "TORCHINDUCTOR_CACHE_DIR": root / "inductor",
        "MPLCONFIGDIR": root / "fonts",
        "SKIPLORA_DEBUG_DIR": root / "named" / "debug",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, str(Path(__file__).with_name("watched_run.py")), str(root / "named")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=root / "here")
    assert done.returncode == 0, done.stderr
    return Run(root, *json.loads(done.stdout.splitlines()[-1]))


def test_what_was_named_is_written(run: Run) -> None:
    assert run.left("named") == NAMED
    names = {Path(path).name for path in run.written}
    assert names >= {"log.jsonl", "page.html", "again.html", "again.json", "picture.png"}


def test_nothing_else_is(run: Run) -> None:
    assert [path for path in run.written if not Path(path).is_relative_to(run.root / "named")] == []


def test_nothing_is_left_at_home_or_in_the_working_directory(run: Run) -> None:
    assert {name: run.left(name) for name in ("home", "here")} == {"home": [], "here": []}


def test_no_connection_is_opened(run: Run) -> None:
    assert run.talked == []
