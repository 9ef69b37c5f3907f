"""The example and the benchmark run from their command lines, on models so small that only the wiring is tested."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from skiplora_fx.read_log import read_log

ROOT = Path(__file__).parent.parent
SENTENCES = ["the cat sat on the mat", "a dog ran to the big house", "it was late and she slept"]


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    begin = [script] if script.startswith("-") else [str(ROOT / script)]
    command = [sys.executable, *begin, *map(str, arguments)]
    # The last word belongs to the test, not to what a developer has set.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    try:
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    except subprocess.TimeoutExpired as late:
        said = [part.decode(errors="replace") for part in (late.stdout, late.stderr) if part]
        return pytest.fail("\n".join([f"{script} was not done after {late.timeout:.0f} s; it said:", *said]))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a GPT-2 of two layers with its tokenizer."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(SENTENCES, trainers.WordLevelTrainer(special_tokens=["<unk>", "<eos>"]))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")
    config = GPT2Config(
        vocab_size=len(wrapped), n_embd=32, n_layer=2, n_head=2, n_positions=64, eos_token_id=wrapped.eos_token_id
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a task ``mrpc`` in the columns of GLUE's."""
    folder = tmp_path_factory.mktemp("glue") / "glue"
    (folder / "mrpc").mkdir(parents=True)
    for split, rows in (("train", 32), ("validation", 8)):
        with (folder / "mrpc" / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["sentence1", "sentence2", "label", "idx"])
            writer.writerows([SENTENCES[i % 3], SENTENCES[i % 2], i % 2, i] for i in range(rows))
    return folder


def test_the_papers_command_line_with_local_folders(model_folder: Path, glue: Path) -> None:
    arguments = ["--epochs", 1, "--threshold", 0.05, "--warmup_steps", 1, "--batch_size", 8, "--max_length", 16]
    done = run("examples/train.py", "--model_name", model_folder, "--dataset", glue, "--task", "mrpc", *arguments)
    assert done.returncode == 0, done.stderr
    for heading in ("untuned", "inductor", "skiplora", "backward", "skipped"):
        assert heading in done.stdout


def test_a_policy_and_a_log(model_folder: Path, glue: Path, tmp_path: Path) -> None:
    arguments = ["--epochs", 1, "--warmup_steps", 0, "--batch_size", 8, "--max_length", 16, "--backend", "skiplora"]
    chosen = ["--policy", "freeze", "--decision", "previous", "--skipped_grad", "none", "--log", tmp_path / "log.jsonl"]
    data = ["--model_name", model_folder, "--dataset", glue, "--task", "mrpc"]
    done = run("examples/train.py", *data, *arguments, *chosen)
    assert done.returncode == 0, done.stderr
    opens = read_log(tmp_path / "log.jsonl").open
    assert opens.shape[0] == 4
    assert opens[0].tolist() == [0.0] * (opens.shape[1] // 2) + [1.0] * (opens.shape[1] // 2)


@pytest.mark.parametrize("wrap", ["ddp", pytest.param("shard", marks=pytest.mark.slow)])
def test_two_processes(wrap: str, tmp_path: Path) -> None:
    log, told = tmp_path / "log.jsonl", tmp_path / "told"
    ranks = ["--standalone", "--nproc-per-node", "2", "--redirects", "2", "--log-dir", told]
    sizes = ["--layers", 1, "--hidden", 32, "--batch_size", 2, "--max_length", 16, "--max_steps", 3]
    chosen = ["--wrap", wrap, "--policy", "freeze", "--warmup_steps", 1, "--log_file", log]
    done = run("-m", "torch.distributed.run", *ranks, ROOT / "examples/train_distributed.py", *sizes, *chosen)
    assert done.returncode == 0, "\n".join([done.stdout, done.stderr, *_told_by_ranks(told)])
    assert [f"step {step}: loss" in done.stdout for step in range(3)] == [True] * 3
    assert done.stdout.count("adapters skipped in the last backward") == 1
    found = read_log(log)
    assert (found.runs, found.steps, len(found.losses)) == (1, [0, 1, 2], 3)


def _told_by_ranks(folder: Path) -> list[str]:
    """Return what each rank wrote to stderr, headed by its number."""
    found = sorted(folder.glob("**/stderr.log"), key=lambda path: path.parent.name)
    return [f"--- stderr of rank {path.parent.name}\n{path.read_text(errors='replace')}" for path in found]


FAILS = """
import os, pathlib, sys, time
print("I am", os.environ["RANK"], file=sys.stderr)
pathlib.Path(sys.argv[1], os.environ["RANK"]).touch()
while not all(pathlib.Path(sys.argv[1], rank).exists() for rank in "01"):
    time.sleep(0.01)
sys.exit(3)
"""
"""Fails when both processes have said something."""


def test_when_processes_fail_what_each_of_them_said_is_told(tmp_path: Path) -> None:
    script, told = tmp_path / "fails.py", tmp_path / "told"
    script.write_text(FAILS)
    ranks = ["--standalone", "--nproc-per-node", "2", "--redirects", "2", "--log-dir", told]
    assert run("-m", "torch.distributed.run", *ranks, script, tmp_path).returncode != 0
    assert [said.splitlines()[1] for said in _told_by_ranks(told)] == ["I am 0", "I am 1"]


def test_a_model_that_is_nowhere_is_one_paragraph(glue: Path) -> None:
    done = run("examples/train.py", "--model_name", "./no/such/folder", "--dataset", glue, "--task", "mrpc")
    assert done.returncode == 2
    assert "no/such/folder" in done.stderr
    assert "Traceback" not in done.stderr
