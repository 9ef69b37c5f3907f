"""How a task is judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import TaskType
from pretrain_llama import train_tokenizer
from quality_parts.tasks import IGNORED, Loss, Rows, Task, instruct, with_lora
from quality_task import SETTINGS, tiny_task
from torch import nn
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

QUESTION, ANSWER = 2, 3


def language_model() -> Loss:
    """Return a Llama of one layer."""
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, use_cache=False
    )
    return Loss(with_lora(LlamaForCausalLM(config), TaskType.CAUSAL_LM, SETTINGS), causal=True)


@torch.no_grad()
def greedy(loss: Loss, rows: int) -> Rows:
    """Return rows whose answers are those that the model itself gives."""
    ids = torch.randint(16, (rows, QUESTION))
    for _ in range(ANSWER):
        ids = torch.cat([ids, loss.model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    labels = ids.clone()
    labels[:, :QUESTION] = IGNORED
    return ids, torch.ones_like(ids), labels


@pytest.mark.parametrize(
    ("wrong", "exact"), [([], 100.0), ([(0, -1)], 75.0), ([(0, -1), (3, -2)], 50.0), ([(1, -3)], 100.0)]
)
def test_an_answer_is_exact_if_every_token_of_its_end_is(wrong: list[tuple[int, int]], exact: float) -> None:
    loss = language_model()
    rows = greedy(loss, 4)
    labels = rows[2]
    for row, place in wrong:
        labels[row, place] = (labels[row, place] + 1) % 16
    scores = Task("words", loss, rows, rows, finals=torch.full((4,), 2)).judge(size=3)
    assert scores["exact"] == exact
    assert scores["accuracy"] == pytest.approx(100 * (4 * ANSWER - len(wrong)) / (4 * ANSWER))


def test_a_classifier_has_no_exact_answers() -> None:
    assert set(tiny_task().judge()) == {"accuracy", "loss"}


QUESTIONS = ["two and two", "three and one", "a question that is much longer than the others are", "one", "two and two"]


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    """Return a folder with problems and a model that reads them."""
    rows = [{"instruction": question, "output": "\nA: four. The answer is 4."} for question in QUESTIONS]
    rows.insert(3, {"instruction": "five", "output": "four"})  # with no final answer
    (tmp_path / "math_train.json").write_text(json.dumps(rows))
    tokenizer = train_tokenizer([row["output"] for row in rows], 300)
    tokenizer.save_pretrained(tmp_path)
    config = LlamaConfig(vocab_size=300, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def test_problems_are_whole_and_no_test_question_is_trained_on(problems: Path) -> None:
    settings = replace(SETTINGS, tokens=40, test_rows=1, batch=1)
    task = instruct(problems, str(problems), settings)
    tokenizer = AutoTokenizer.from_pretrained(problems)

    def texts(rows: Rows) -> list[str]:
        return [tokenizer.decode(ids[mask.bool()]) for ids, mask in zip(rows[0], rows[1], strict=True)]

    answer = "\nA: four. The answer is 4.<|end|>"
    assert texts(task.train) == [f"three and one{answer}", f"one{answer}"]
    assert texts(task.test) == [f"two and two{answer}"]
    assert task.finals is not None
    ids, _, labels = task.test
    assert tokenizer.decode(ids[labels != IGNORED]) == answer
    assert tokenizer.decode(ids[labels != IGNORED][-int(task.finals[0]) :]) == " 4.<|end|>"


def test_rows_that_do_not_fit_are_said_to_be_too_few(problems: Path) -> None:
    with pytest.raises(ValueError, match=r"0 rows of math_train.json fit into --tokens 8: give more"):
        instruct(problems, str(problems), replace(SETTINGS, tokens=8, test_rows=1, batch=1))


def test_a_model_with_dropout_is_judged_without() -> None:
    task = tiny_task()
    dropouts = [module for module in task.loss.modules() if isinstance(module, nn.Dropout)]
    for module in dropouts:
        module.p = 0.5
    task.reset(0)
    assert task.judge() == task.judge()
    assert all(module.training for module in dropouts)


def test_a_model_without_a_linear_in_a_layer_is_refused() -> None:
    config = GPT2Config(vocab_size=8, n_positions=4, n_embd=4, n_layer=1, n_head=1)
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel has no nn\.Linear in a repeated layer .*--model_name"):
        with_lora(GPT2LMHeadModel(config), TaskType.CAUSAL_LM, SETTINGS)
