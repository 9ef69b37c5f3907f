"""The command line of the quality benchmark: what it makes, what it leaves alone, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import quality
import torch
from pretrain_llama import train_tokenizer
from transformers import BertConfig, BertForSequenceClassification

VOCABULARY = 270
SMALL = ("--steps", "4", "--batch", "2", "--tokens", "8", "--test_rows", "4", "--rank", "2")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a Bert of one layer, 8 wide."""
    folder = tmp_path_factory.mktemp("model")
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    train_tokenizer(["one two three four"], VOCABULARY).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a few rows in MRPC's form."""
    folder = tmp_path_factory.mktemp("data")
    rows = [f"{number % 2}\t1\t2\tone {number}\ttwo {number}" for number in range(8)]
    for file in ("train.tsv", "test.tsv"):
        (folder / file).write_text(
            "\n".join(["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", *rows]), encoding="utf-8-sig"
        )
    return folder


@pytest.fixture
def command(model_folder: Path, data_folder: Path, tmp_path: Path) -> list[str]:
    """Return the options that every call has."""
    return ["--model_name", str(model_folder), "--data", str(data_folder), "--results", str(tmp_path), "--seeds", "0"]


def test_runs_are_made_once_and_reported(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = ("--arms", "full", "freeze", "--full_lengths", "0.5", "1")
    quality.main([*command, *arms, *SMALL, "--phases", "train", "report"])
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "mrpc").glob("run-*.json")}
    assert set(made) == {"run-full-0.5-0.json", "run-full-1-0.json", "run-freeze-1-0.json"}
    assert "| freeze" in capsys.readouterr().out
    # What is not given is as it was.
    quality.main([*command, *arms, "--phases", "train"])
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "mrpc").glob("run-*.json")} == made
    quality.main(["--results", str(tmp_path), "--phases", "report"])
    assert "| freeze" in capsys.readouterr().out


def test_other_settings_and_other_data_are_refused_in_one_line(command: list[str], tmp_path: Path) -> None:
    quality.main([*command, *SMALL, "--phases", "report"])
    with pytest.raises(SystemExit, match=r"^quality\.py: the runs in .*mrpc were made with \{'steps': 4\}"):
        quality.main([*command, "--steps", "5", "--phases", "report"])
    quality.main([*command, "--arms", "full", "--full_lengths", "1", "--phases", "train"])
    other = tmp_path / "other"
    other.mkdir()
    for file in ("train.tsv", "test.tsv"):
        text = (Path(command[3]) / file).read_text(encoding="utf-8-sig")
        (other / file).write_text(text.replace("one", "three"), encoding="utf-8-sig")
    with pytest.raises(SystemExit, match=r"^quality\.py: the runs in .* were made with another model or other data"):
        quality.main([*command[:3], str(other), *command[4:], "--phases", "train"])


def test_what_a_phase_needs_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        quality.main(["--results", str(tmp_path), "--data", "somewhere"])
    assert "to train and time give --model_name" in capsys.readouterr().err
    quality.main(["--results", str(tmp_path), "--phases", "report"])
    assert f"no run is in {tmp_path / 'mrpc'} yet" in capsys.readouterr().out
