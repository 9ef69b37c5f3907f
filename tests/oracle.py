"""The oracle: eager ``.detach()`` in the places where the gates are shut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

Mask = Mapping[str, bool]
"""For each site's name whether its gate is open."""

Gradients = dict[str, Tensor]


def adapted_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Return the LoRA layers of a model under their module paths, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@contextmanager
def detached(model: nn.Module, scope: str, mask: Mask) -> Iterator[None]:
    """Detach, in eager forwards of ``model``, what the gates of ``scope`` detach where ``mask`` is shut."""
    shut = [layer for name, layer in adapted_layers(model).items() if not mask[name]]
    handles = [handle for layer in shut for handle in _hook(layer, scope)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(layer: LoraLayer, scope: str) -> list[Any]:
    if scope == "layer":
        return [layer.register_forward_hook(_detach)]
    return [layer.lora_B[adapter].register_forward_hook(_detach) for adapter in layer.active_adapters]


def _detach(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.detach()


def gradients(model: nn.Module, run: Callable[[], Tensor]) -> Gradients:
    """Return the gradients of all trained parameters after a backward of ``run()``; those of None as zeros."""
    model.zero_grad(set_to_none=True)
    loss = run()
    if loss.requires_grad:  # with every adapter detached eager has nothing to differentiate
        loss.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def ratios(model: nn.Module, run: Callable[[], Any]) -> dict[str, float]:
    """Return ``||Δh|| / ||h||`` of each adapted layer, from what eager hooks see of B's and the base's output."""
    found: dict[str, float] = {}
    handles = []
    for name, layer in adapted_layers(model).items():
        (adapter,) = layer.active_adapters
        norms: dict[str, Tensor] = {}

        def keep(kind: str, norms: dict[str, Tensor] = norms) -> Callable[..., None]:
            return lambda module, inputs, output: norms.__setitem__(kind, output.detach().float().norm())

        def divide(
            *_: Any, name: str = name, norms: dict[str, Tensor] = norms, scale: float = layer.scaling[adapter]
        ) -> None:
            found[name] = float(scale * norms["delta"] / norms["h"])

        handles += [
            layer.lora_B[adapter].register_forward_hook(keep("delta")),
            layer.base_layer.register_forward_hook(keep("h")),
            layer.register_forward_hook(divide),
        ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found
