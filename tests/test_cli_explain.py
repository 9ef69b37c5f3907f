"""``skiplora explain`` builds a model from its config alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import models
import pytest

SHELL = [sys.executable, "-m", "skiplora_fx.cli", "explain"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    models.llama(2).config.save_pretrained(path)
    return str(path)


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SHELL, *arguments], capture_output=True, text=True, check=False)


def test_the_command_reads_no_weights(folder: str) -> None:
    assert {path.name for path in Path(folder).iterdir()} <= {"config.json", "generation_config.json"}
    done = shell(folder, "--r", "2", "--length", "8", "--json")
    assert done.returncode == 0, done.stderr
    (graph,) = json.loads(done.stdout)["graphs"]
    assert [site["name"].rsplit(".", 1)[1] for site in graph["sites"]] == ["q_proj", "v_proj"] * 2
    assert {(site["rank"], site["shape"][1]) for site in graph["sites"]} == {(2, 8)}


def test_the_command_with_bad_input(folder: str) -> None:
    done = shell(folder, "--target-modules", "nonsense")
    assert (done.returncode, done.stdout) == (1, "")
    assert "PEFT finds none of nonsense" in done.stderr
    assert "q_proj" in done.stderr
    assert "Traceback" not in done.stderr
