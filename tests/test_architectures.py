"""Architectures of transformers, tiny and random, all linears adapted: every site found, any mask exact."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import oracle
import pytest
import torch
import transformers
from capture import QuickBackend
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

VOCABULARY = 48
Inputs = dict[str, Any]


def ids(rows: int = 2, length: int = 8) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, length))


def text() -> Inputs:
    tokens = ids()
    return {"input_ids": tokens, "labels": tokens}


def encoded() -> Inputs:
    return {"input_ids": ids(), "labels": torch.tensor([0, 1])}


def image() -> Inputs:
    return {"pixel_values": torch.randn(2, 3, 8, 8), "labels": torch.tensor([0, 1])}


def sound() -> Inputs:
    return {"input_features": torch.randn(2, 8, 16), "labels": ids()}


def decoder(name: str, **options: Any) -> Callable[[], nn.Module]:
    """Return what builds ``<name>ForCausalLM`` in the sizes that most configs call alike."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
        "use_cache": False,
    }
    chosen = {key: value for key, value in {**sizes, **options}.items() if value is not None}
    return lambda: _build(name, "ForCausalLM", chosen)


def model(name: str, head: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: _build(name, head, options)


def _build(name: str, head: str, options: dict[str, Any]) -> nn.Module:
    config = getattr(transformers, f"{name}Config")(**options)
    return getattr(transformers, f"{name}{head}")(config)


DROPOUT_OFF = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SEQUENCE = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
    "use_cache": False,
}
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    **DROPOUT_OFF,
}
GPT = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "use_cache": False}
NO_GPT_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

QUICK: dict[str, tuple[Callable[[], nn.Module], Callable[[], Inputs]]] = {
    "Llama": (decoder("Llama"), text),
    "Qwen3": (decoder("Qwen3"), text),
    "Gemma2": (decoder("Gemma2"), text),
    "GPT-2": (model("GPT2", "LMHeadModel", **GPT, **NO_GPT_DROPOUT), text),
    "GPT-NeoX": (decoder("GPTNeoX"), text),
    "BERT": (model("Bert", "ForSequenceClassification", **ENCODER), encoded),
    "T5": (
        model(
            "T5",
            "ForConditionalGeneration",
            vocab_size=VOCABULARY,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=1,
            num_heads=2,
            dropout_rate=0.0,
            decoder_start_token_id=0,
            use_cache=False,
        ),
        text,
    ),
    "ViT": (
        model(
            "ViT",
            "ForImageClassification",
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
            **DROPOUT_OFF,
        ),
        image,
    ),
    "Mistral": (decoder("Mistral", sliding_window=4), text),
    "Qwen2": (decoder("Qwen2"), text),
    "Phi": (decoder("Phi", resid_pdrop=0.0, embd_pdrop=0.0, attention_dropout=0.0), text),
    "Phi-3": (decoder("Phi3", resid_pdrop=0.0, embd_pdrop=0.0), text),
    "OPT": (
        decoder("OPT", ffn_dim=24, word_embed_proj_dim=16, dropout=0.0, attention_dropout=0.0, layerdrop=0.0),
        text,
    ),
    "OLMo-2": (decoder("Olmo2"), text),
    "StableLM": (decoder("StableLm"), text),
}
SLOW: dict[str, tuple[Callable[[], nn.Module], Callable[[], Inputs]]] = {
    "RoBERTa": (model("Roberta", "ForSequenceClassification", **{**ENCODER, "pad_token_id": 0}), encoded),
    "Gemma": (decoder("Gemma"), text),
    "GPT-J": (model("GPTJ", "ForCausalLM", **GPT, rotary_dim=4, **NO_GPT_DROPOUT), text),
    "Bloom": (decoder("Bloom", n_layer=2, n_head=2, hidden_dropout=0.0, attention_dropout=0.0), text),
    "Falcon": (decoder("Falcon", head_dim=None, num_key_value_heads=None, intermediate_size=None), text),
    "Mixtral": (
        decoder("Mixtral", num_local_experts=2, num_experts_per_tok=1, experts_implementation="batched_mm"),
        text,
    ),
    "Cohere": (decoder("Cohere"), text),
    "DeBERTa-v2": (model("DebertaV2", "ForSequenceClassification", **ENCODER, pooler_hidden_size=16), encoded),
    "BART": (model("Bart", "ForConditionalGeneration", **SEQUENCE, max_position_embeddings=32), text),
    "Whisper": (
        model(
            "Whisper",
            "ForConditionalGeneration",
            **SEQUENCE,
            num_mel_bins=8,
            max_source_positions=8,
            max_target_positions=32,
            bos_token_id=1,
            eos_token_id=2,
        ),
        sound,
    ),
}


TARGETS = {"Mixtral": ["q_proj", "k_proj", "v_proj", "o_proj"]}
"""Of Mixtral PEFT takes the experts, which are no linears, for linears too: see target_parameters in the compatibility
table."""


def adapted(name: str, build: Callable[[], nn.Module]) -> nn.Module:
    """Return the model in double precision with an adapter on each linear but the head."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=TARGETS.get(name, "all-linear"))
    wrapped = get_peft_model(build(), config).double().train()
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return wrapped


def in_double(inputs: Inputs) -> Inputs:
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


def masks(names: list[str]) -> list[Mapping[str, bool]]:
    draw = random.Random(0)
    half = len(names) // 2
    return [
        dict.fromkeys(names, True),
        dict.fromkeys(names, False),
        {name: number >= half for number, name in enumerate(names)},
        {name: draw.random() < 0.5 for name in names},
    ]


SINGLE_PRECISION = {"rtol": 1e-4, "atol": 1e-6}
"""For what computes a part in float32 whatever the model's dtype; elsewhere double precision's default holds."""


def check(name: str, scope: str, **tolerance: float) -> None:
    build, batch_of = (QUICK | SLOW)[name]
    wrapped = adapted(name, build)
    inputs = in_double(batch_of())
    backend = QuickBackend(scope)
    compiled = torch.compile(wrapped, backend=backend, dynamic=False)
    names = list(oracle.adapted_layers(wrapped))
    assert names
    for mask in masks(names):
        backend.set_mask(mask)
        found = oracle.gradients(wrapped, lambda: compiled(**inputs).loss)
        with oracle.detached(wrapped, scope, mask):
            wanted = oracle.gradients(wrapped, lambda: wrapped(**inputs).loss)
        torch.testing.assert_close(found, wanted, **tolerance)
    # After a graph break Dynamo compiles an inner module, whose sites are named from there.
    sites = {name for captured in backend.captured for name in captured.decisions(names)}
    assert sites == set(names)
    assert [rejection for captured in backend.captured for rejection in captured.findings.rejections] == []


IN_BOTH_SCOPES = ("Llama", "GPT-2", "T5")
"""What is in every run in both; of the others the scope is in it that leaves out more."""


def in_each_scope() -> Iterator[Any]:
    for name in QUICK | SLOW:
        for scope in ("adapter", "layer"):
            often = name in QUICK and (scope == "layer" or name in IN_BOTH_SCOPES)
            yield pytest.param(name, scope, marks=[] if often else [pytest.mark.slow])


@pytest.mark.parametrize(("name", "scope"), list(in_each_scope()))
def test_every_linear_of(name: str, scope: str) -> None:
    check(name, scope, **(SINGLE_PRECISION if name == "Gemma2" else {}))
