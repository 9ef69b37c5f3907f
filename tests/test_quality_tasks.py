"""How a task is judged."""

from __future__ import annotations

import pytest
import torch
from peft import TaskType
from quality_parts.tasks import IGNORED, Loss, Rows, Task, with_lora
from quality_task import SETTINGS, tiny_task
from transformers import LlamaConfig, LlamaForCausalLM

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


@pytest.mark.parametrize(("wrong", "exact"), [([], 100.0), ([0], 75.0), ([0, 3], 50.0)])
def test_an_answer_is_exact_if_every_token_is(wrong: list[int], exact: float) -> None:
    loss = language_model()
    rows = greedy(loss, 4)
    rows[2][wrong, -1] = (rows[2][wrong, -1] + 1) % 16  # the last token alone
    scores = Task("words", loss, rows, rows).judge(size=3)
    assert scores["exact"] == exact
    assert scores["accuracy"] == pytest.approx(100 * (4 * ANSWER - len(wrong)) / (4 * ANSWER))


def test_a_classifier_has_no_exact_answers() -> None:
    assert set(tiny_task().judge()) == {"accuracy", "loss"}
