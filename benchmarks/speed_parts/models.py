"""The model that is measured, its batch, and copies of it that train adapters of their own."""

from __future__ import annotations

import argparse
import copy

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

TARGETS = {
    "q": ["q_proj"],
    "qv": ["q_proj", "v_proj"],
    "mlp": ["gate_proj", "up_proj", "down_proj"],
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "all": "all-linear",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LENGTHS = ("full", "alpaca")


def build(args: argparse.Namespace) -> tuple[PeftModel, dict[str, Tensor]]:
    """Return a Llama with adapters that are not zero, and a batch of random tokens for it."""
    heads = max(1, args.dim // args.head_dim)
    config = LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=args.dim,
        intermediate_size=int(args.dim * args.intermediate_ratio),
        num_hidden_layers=args.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=args.length,
        use_cache=False,
    )
    with torch.device(args.device):  # the weights of 7 billion parameters are not drawn on the host
        base = AutoModelForCausalLM.from_config(config, dtype=DTYPES[args.dtype])
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=TARGETS[args.targets])
    model = get_peft_model(base, lora).to(args.device).train()
    if args.checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # Its hook on the embedding, which that kind does not need, has every gradient flow down to there.
        base.disable_input_require_grads()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return model, _batch(args)


def sites_of(model: nn.Module) -> list[str]:
    """Return the names of the adapted layers, in the order of the forward."""
    return [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def layers_of(model: PeftModel) -> list[nn.Module]:
    """Return the transformer's layers, in the order of the forward."""
    return list(model.get_base_model().model.layers)


def with_own_adapters(model: PeftModel) -> PeftModel:
    """Return a copy that trains parameters of its own over the same frozen ones."""
    frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    return copy.deepcopy(model, frozen)


def _batch(args: argparse.Namespace) -> dict[str, Tensor]:
    ids = torch.randint(args.vocab, (args.batch, args.length), device=args.device)
    if args.lengths == "full":
        return {"input_ids": ids, "labels": ids}
    mask = torch.arange(args.length) < _alpaca_lengths(args).unsqueeze(1)
    mask = mask.to(args.device)
    return {"input_ids": ids, "labels": ids.masked_fill(~mask, -100), "attention_mask": mask.long()}


def _alpaca_lengths(args: argparse.Namespace) -> Tensor:
    """Draw int ``[batch]``: log-normal about 110 tokens, a prompt of a sentence or two and an answer of a paragraph."""
    generator = torch.Generator().manual_seed(args.seed)
    drawn = torch.exp(4.7 + 0.6 * torch.randn(args.batch, generator=generator))
    return drawn.long().clamp(min(16, args.length), args.length)
