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
    if scope == "input":
        return [layer.register_forward_pre_hook(lambda module, inputs: (inputs[0].detach(), *inputs[1:]))]
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


def ratios(model: nn.Module, run: Callable[[], Any]) -> dict[tuple[str, str], float]:
    """Return ``||Δh|| / ||h||`` by layer and adapter, from what eager hooks see of each B's and the base's output."""
    deltas: dict[tuple[str, str], Tensor] = {}
    hs: dict[str, Tensor] = {}

    def keep(norms: dict[Any, Tensor], key: Any, scale: float = 1.0) -> Callable[..., None]:
        return lambda module, inputs, output: norms.__setitem__(key, scale * output.detach().float().norm())

    handles = []
    for name, layer in adapted_layers(model).items():
        handles.append(layer.base_layer.register_forward_hook(keep(hs, name)))
        for adapter in layer.active_adapters:
            hook = keep(deltas, (name, adapter), layer.scaling[adapter])
            handles.append(layer.lora_B[adapter].register_forward_hook(hook))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return {key: float(delta / hs[key[0]]) for key, delta in deltas.items()}
