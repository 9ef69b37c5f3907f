"""A task of the quality benchmark that fits a test: a Bert of a few layers, 8 wide, and random rows."""

from __future__ import annotations

import torch
from peft import TaskType
from quality_parts.settings import Settings
from quality_parts.tasks import Loss, Rows, Task, with_lora
from transformers import BertConfig, BertForSequenceClassification

SETTINGS = Settings(steps=8, batch=4, tokens=6, test_rows=4, warmup=0.25, rank=2)


def tiny_task(layers: int = 6) -> Task:
    """Return the task. An adapter is on each of the six linears of a layer."""
    config = BertConfig(
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=layers,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=SETTINGS.tokens,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = with_lora(BertForSequenceClassification(config), TaskType.SEQ_CLS, SETTINGS)
    return Task("tiny", Loss(model), _rows(16), _rows(SETTINGS.test_rows))


def _rows(count: int) -> Rows:
    ids = torch.randint(16, (count, SETTINGS.tokens))
    return ids, torch.ones_like(ids), ids[:, 0] % 2
