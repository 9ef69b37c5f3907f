"""On an NVIDIA GPU: a step that skips holds little more than one of a model with those adapters frozen."""

from __future__ import annotations

import models
import on_device
import torch
from memory import peak_of
from on_device import DEVICE, OPEN, force, lower_half
from torch import nn

pytestmark = on_device.WHERE


def build() -> nn.Module:
    torch.manual_seed(0)
    return (
        models.with_lora(models.llama(4, hidden_size=128, intermediate_size=344), models.ALL_LINEAR).to(DEVICE).train()
    )


def settled_peak(model: nn.Module) -> int:
    """Return the peak of a step above what is held before it, once steps are alike, bytes."""
    inputs = {name: value.to(DEVICE) for name, value in models.tokens(4, 64).items()}

    def step() -> None:
        model(**inputs).loss.backward()

    for _ in range(3):
        step()
    model.zero_grad(set_to_none=True)
    return peak_of(step, DEVICE)


def peak_shut() -> int:
    model = build()
    model.compile(backend="skiplora", options={**OPEN, "decision": "previous"})
    settled_peak(model)
    force(model, lower_half(model))
    return settled_peak(model)


def peak_frozen() -> int:
    model = build()
    for name, open in lower_half(model).items():
        if not open:
            model.get_submodule(name).requires_grad_(False)
    model.compile(backend="inductor")
    return settled_peak(model)


def test_memory_is_given_back() -> None:
    assert peak_shut() < 1.2 * peak_frozen()
