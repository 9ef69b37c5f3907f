"""What the tests of this folder run, and where.

They are for an NVIDIA GPU. ``GPU_TESTS_ON=cpu python -m pytest tests/gpu`` runs those that need none on the CPU, which
shows that the tests themselves are right.
"""

from __future__ import annotations

import math
import os
from typing import Any

import models
import oracle
import pytest
import torch
from torch import Tensor, nn

import skiplora_fx

DEVICE = os.environ.get("GPU_TESTS_ON", "cuda")
ON_GPU = torch.device(DEVICE).type == "cuda"

WHERE = [
    pytest.mark.gpu,
    pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
NEEDS_CUDA = [*WHERE, pytest.mark.skipif(not ON_GPU, reason="about streams and events of CUDA")]

OPEN: dict[str, Any] = {"threshold": 0.0, "warmup_steps": 0, "probe_every": 0, "strict": True}
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""Relative to the largest of a gradient. In bfloat16 a CPU's gradients differed from eager's by up to 0.08 of it."""


def llama(
    dtype: torch.dtype = torch.float32, layers: int = 2, checkpointing: bool = False, device: str = DEVICE
) -> nn.Module:
    """Return a small Llama with adapters on all linears, the same at each call."""
    torch.manual_seed(0)
    model = models.with_lora(models.llama(layers), models.ALL_LINEAR)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.to(device, dtype).train()


def batch(padded: bool = False, device: str = DEVICE) -> dict[str, Tensor]:
    """Return a batch of 32 tokens in a row, or of fewer with an attention mask."""
    inputs = models.padded((32, 20, 7, 32)) if padded else models.tokens(4, 32)
    return {name: value.to(device) for name, value in inputs.items()}


def all_open(model: nn.Module) -> dict[str, bool]:
    """Return the mask that shuts nothing."""
    return dict.fromkeys(oracle.adapted_layers(model), True)


def lower_half(model: nn.Module) -> dict[str, bool]:
    """Return the mask that shuts the lower half."""
    names = list(oracle.adapted_layers(model))
    return {name: place >= len(names) // 2 for place, name in enumerate(names)}


def every_other(model: nn.Module) -> dict[str, bool]:
    """Return the mask that shuts the first, the third and so on."""
    return {name: bool(place % 2) for place, name in enumerate(oracle.adapted_layers(model))}


def force(model: nn.Module, mask: oracle.Mask) -> None:
    """Have a model that has run decide as ``mask`` says."""
    for name, open in mask.items():
        skiplora_fx.set_threshold(model, 0.0 if open else math.inf, name)


def check_gradients(
    compiled: nn.Module, eager: nn.Module, inputs: dict[str, Tensor], scope: str, tolerance: float
) -> None:
    """Compare the gradients of a model under the backend with eager's under three masks.

    Args:
        compiled: what is checked.
        eager: the same model, not compiled.
        inputs: of both.
        scope: of the gates.
        tolerance: relative to the largest of each gradient, so that zeros have to be zeros.
    """
    compiled(**inputs).loss.backward()
    for mask in (lower_half(eager), every_other(eager), all_open(eager)):
        force(compiled, mask)
        found = oracle.gradients(compiled, lambda: compiled(**inputs).loss)
        with oracle.detached(eager, scope, mask):
            wanted = oracle.gradients(eager, lambda: eager(**inputs).loss)
        assert found.keys() == wanted.keys()
        for name, want in wanted.items():
            atol = tolerance * float(want.abs().max())
            torch.testing.assert_close(
                found[name], want, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
            )
