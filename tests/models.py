"""Tiny transformers with LoRA adapters, the same at each call: what the tests compile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

VOCABULARY = 96
QV, ALL_LINEAR, MLP = ("q_proj", "v_proj"), "all-linear", ("gate_proj", "up_proj", "down_proj")


def llama(layers: int = 3, **overrides: Any) -> LlamaForCausalLM:
    """Return a small Llama: grouped-query attention, SwiGLU, 32 wide."""
    defaults: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "use_cache": False,
    }
    return LlamaForCausalLM(LlamaConfig(**{**defaults, **overrides}))


def gpt2(layers: int = 2) -> GPT2LMHeadModel:
    """Return a small GPT-2, whose linear layers are ``Conv1D``."""
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=layers, n_head=4, n_positions=64, use_cache=False)
    )


def bert(layers: int = 2) -> BertForSequenceClassification:
    """Return a small BERT with a classification head of three classes."""
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=64,
            num_labels=3,
        )
    )


def t5(layers: int = 2) -> T5ForConditionalGeneration:
    """Return a small T5: encoder, decoder, cross-attention."""
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=layers,
            num_heads=4,
            dropout_rate=0.0,
            decoder_start_token_id=0,
            use_cache=False,
        )
    )


def with_lora(base: nn.Module, targets: Any = QV, *, rank: int = 4, dropout: float = 0.0, **lora: Any) -> PeftModel:
    """Return ``base`` with LoRA adapters whose B is drawn at random, so that no ratio is zero."""
    lora.setdefault("lora_alpha", 2 * rank)
    model = get_peft_model(base, LoraConfig(r=rank, target_modules=targets, lora_dropout=dropout, **lora))
    randomise_b(model)
    return model


def randomise_b(model: nn.Module) -> None:
    """Draw every B (and adapter bias) anew; PEFT starts them at zero."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def tokens(batch: int = 2, length: int = 12, seed: int = 0) -> dict[str, Tensor]:
    """Return ``input_ids`` and equal ``labels``: int64 ``[batch, length]``."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (batch, length), generator=generator)
    return {"input_ids": ids, "labels": ids.clone()}


def padded(lengths: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    """Return a batch of sequences of unequal length, padded on the right, with mask and masked labels."""
    batch = tokens(len(lengths), max(lengths), seed)
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    labels = batch["labels"].masked_fill(~mask, -100)
    return {"input_ids": batch["input_ids"], "attention_mask": mask.long(), "labels": labels}


def labelled(batch: int = 2, length: int = 12) -> dict[str, Tensor]:
    """Return ``input_ids`` with one class label for each sequence."""
    return {"input_ids": tokens(batch, length)["input_ids"], "labels": torch.arange(batch) % 3}


@dataclass(frozen=True)
class Subject:
    """A model to test: how to build it, and a batch for it."""

    build: Callable[[], nn.Module]
    batch: Callable[[], dict[str, Tensor]]

    def fresh(self) -> nn.Module:
        """Return the model in training mode, with the same weights at each call."""
        torch.manual_seed(0)
        return self.build().train()
