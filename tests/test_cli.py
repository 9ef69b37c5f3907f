"""The command in the shell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import skiplora_fx
from skiplora_fx.cli import main
from skiplora_fx.passes import PIPELINE


def test_env_names_the_versions_and_finds_the_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    lines = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["skiplora_fx"] == skiplora_fx.__version__
    assert lines["torch"] == torch.__version__
    assert lines['backend "skiplora"'] == "found"


def test_a_package_that_is_missing_is_said_to_be(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skiplora_fx.cli._PACKAGES", ("no-such-package",))
    main(["env"])
    assert "no-such-package     not installed" in capsys.readouterr().out


def test_passes_are_listed_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["passes"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split()[:2] for row in rows] == [[stage.name, stage.graph] for stage in PIPELINE]


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["env", "more"]])
def test_what_it_does_not_know_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(argv)
    assert raised.value.code == 2
    assert "usage: skiplora" in capsys.readouterr().err


def test_the_installed_command() -> None:
    command = Path(sys.executable).with_name("skiplora")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"skiplora_fx {skiplora_fx.__version__}\n"
