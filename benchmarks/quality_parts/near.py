"""Steps in which adapters train and no gradient goes below their layer: what flows down is the residual stream's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from peft.tuners.lora import LoraLayer
from torch import nn

Pattern = tuple[tuple[str, float, float], ...]
"""Layers: the last part of a name, and from and below which blocks they lie, as shares of all blocks."""

ATTENTION = ("q_proj", "k_proj", "v_proj", "query", "key", "value")
MLP = ("gate_proj", "up_proj", "intermediate.dense")
INNER = ATTENTION + MLP
"""Last parts of the names of layers that read the residual stream, and do not write into it."""


def near(names: Sequence[str] = INNER, low: float = 0.0, high: float = 1.0) -> Pattern:
    """Return the layers with these last parts of their names in some of the blocks."""
    return tuple((name, low, high) for name in names)


def near_mask(pattern: Pattern, names: Sequence[str]) -> str:
    """Return the mask of a step: ``i`` for a layer whose input is detached, 1 for the others."""
    blocks = 1 + max(map(_block, names))
    return "".join("i" if _has(pattern, name, blocks) else "1" for name in names)


@contextmanager
def detached_inputs(model: nn.Module, pattern: Pattern) -> Iterator[None]:
    """Detach what goes into the layers of ``pattern``, in forwards of ``model``."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    blocks = 1 + max(map(_block, layers))
    handles = [
        layer.register_forward_pre_hook(lambda module, inputs: (inputs[0].detach(), *inputs[1:]))
        for name, layer in layers.items()
        if _has(pattern, name, blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _has(pattern: Pattern, name: str, blocks: int) -> bool:
    place = _block(name) / blocks
    return any(name.endswith(last) and low <= place < high for last, low, high in pattern)


def _block(name: str) -> int:
    return next((int(part) for part in name.split(".") if part.isdecimal()), -1)
