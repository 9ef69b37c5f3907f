"""What ``benchmarks/pretrain_llama.py`` saves can be loaded and has learnt; what it cannot read is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pretrain_llama import FILES, DataError, main, rows_of, texts_of
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

SMALL = ["--layers", "1", "--width", "16", "--vocabulary", "300", "--tokens", "16", "--batch", "4"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder of instructions that are much alike."""
    folder = tmp_path / "data"
    folder.mkdir()
    for file in FILES:
        rows = [(f"Is {number} even? ", "no" if number % 2 else "yes") for number in range(40)]
        written = [{"instruction": question, "output": answer} for question, answer in rows]
        (folder / file).write_text(json.dumps(written))
    return folder


@torch.no_grad()
def loss_of(folder: Path, text: str) -> float:
    """Return the loss of a text under what is saved in a folder."""
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    return float(AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids, labels=ids).loss)


def test_what_is_saved_has_learnt(data: Path, tmp_path: Path) -> None:
    losses = []
    for steps in (1, 40):
        out = tmp_path / str(steps)
        main(["--data", str(data), "--out", str(out), *SMALL, "--steps", str(steps), "--learning_rate", "0.02"])
        losses.append(loss_of(out, "Is 12 even? yes<|end|>"))
    untrained, trained = losses
    assert 0 < trained < untrained / 2


def test_what_is_saved_is_as_large_as_asked_for(data: Path, tmp_path: Path) -> None:
    """Ten steps, of which a tenth is one, are no special case."""
    main(["--data", str(data), "--out", str(tmp_path / "out"), *SMALL, "--layers", "2", "--steps", "10"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert isinstance(model, LlamaForCausalLM)
    assert (len(model.model.layers), model.config.hidden_size) == (2, 16)
    assert len(tokenizer) == model.config.vocab_size <= 300
    assert tokenizer.decode(tokenizer("Is 3 even?")["input_ids"]) == "Is 3 even?"
    assert tokenizer.eos_token_id == model.config.eos_token_id == tokenizer("<|end|>")["input_ids"][0]


def refusal(data: Path, *options: str) -> str:
    """Return with which message the command ends; nothing may be saved then."""
    out = data.parent / "out"
    with pytest.raises(SystemExit) as ended:
        main(["--data", str(data), "--out", str(out), *SMALL, *options])
    assert not out.exists()
    return str(ended.value)


def test_a_file_that_is_not_there_is_named(data: Path) -> None:
    (data / FILES[1]).unlink()
    said = refusal(data)
    assert f"{data / FILES[1]}: No such file" in said
    assert all(file in said for file in FILES)
    assert str(data / "nowhere" / FILES[0]) in refusal(data / "nowhere")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("", "JSONDecodeError"),
        ("3", "TypeError"),
        ('["text"]', "TypeError"),
        ('[{"instruction": "a"}]', "KeyError: 'output'"),
        ('[{"instruction": "a", "output": null}]', "TypeError"),
    ],
)
def test_a_file_that_holds_something_else_is_named(data: Path, content: str, error: str) -> None:
    (data / FILES[1]).write_text(content)
    said = refusal(data)
    assert str(data / FILES[1]) in said
    assert "'instruction' and 'output'" in said
    assert error in said


def test_too_little_text_for_a_row_is_said(data: Path) -> None:
    assert "a row has 100000: give more text, or less --tokens" in refusal(data, "--tokens", "100000")


def test_rows_are_whole() -> None:
    assert rows_of(list(range(11)), 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert rows_of(list(range(3)), 3).tolist() == [[0, 1, 2]]
    with pytest.raises(DataError, match="have 2 tokens"):
        rows_of([0, 1], 3)


def test_a_text_is_an_instruction_with_its_output(data: Path) -> None:
    texts = texts_of(data)
    assert texts[:2] == ["Is 0 even? yes", "Is 1 even? no"]
    assert len(texts) == 80
