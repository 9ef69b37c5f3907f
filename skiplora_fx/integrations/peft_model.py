"""A model of the Hub or of a folder with fresh LoRA adapters, as far as possible without its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError


@dataclass(frozen=True)
class LoRAModel:
    """What :func:`build_lora_model` builds.

    Attributes:
        source: id on the Hub, or a local folder; of it only ``config.json`` is read.
        rank: r.
        targets: names of the modules to adapt, as PEFT's ``target_modules``; ``("all-linear",)`` for all.
        batch: number of sequences.
        length: tokens in each.
        dtype: of the frozen weights, such as ``"bfloat16"``; the adapters are float32.
        device: ``"meta"``, on which nothing is stored or computed, or one with memory.
        layers: number of layers, or None for the model's own.
    """

    source: str
    rank: int = 16
    targets: Sequence[str] = ("q_proj", "v_proj")
    batch: int = 1
    length: int = 512
    dtype: str = "bfloat16"
    device: str = "meta"
    layers: int | None = None


def build_lora_model(wanted: LoRAModel) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build a causal language model from its config, adapt it, and make a batch for it.

    Returns:
        The model in training mode, and ``input_ids`` and ``labels``, int64 ``[batch, length]``.

    Raises:
        UsageError: transformers or peft is missing; there is no such config; PEFT finds no such modules.
    """
    try:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise UsageError(
            f"{error.name} is not installed, and a model cannot be built without it: "
            'pip install "skiplora-fx[examples]"'
        ) from error
    dtype = getattr(torch, wanted.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise UsageError(f"--dtype {wanted.dtype}: torch has no such dtype; float32, bfloat16 or float16 is meant")
    try:
        config = AutoConfig.from_pretrained(wanted.source)
    except Exception as error:
        raise UsageError(
            f"there is no model config at {wanted.source!r} ({type(error).__name__}). Give an id on the Hub, or "
            "a folder with a config.json."
        ) from error
    config.use_cache = False
    if wanted.layers is not None:
        config.num_hidden_layers = wanted.layers
    targets: Any = list(wanted.targets)
    lora = LoraConfig(r=wanted.rank, target_modules=targets[0] if targets == ["all-linear"] else targets)
    with torch.device(wanted.device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        try:
            adapted = get_peft_model(model, lora)
        except ValueError as error:
            names = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
            raise UsageError(
                f"PEFT finds none of {', '.join(targets)} in {wanted.source}. Its linears are: {', '.join(names)}."
            ) from error
        tokens = torch.zeros(wanted.batch, wanted.length, dtype=torch.int64)
    return adapted.train(), {"input_ids": tokens, "labels": tokens}
