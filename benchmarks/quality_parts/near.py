"""Steps in which adapters train and no gradient goes below their layer: what flows down is the residual stream's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    blocks = _count(names)
    return "".join("i" if _has(pattern, name, blocks) else "1" for name in names)


@contextmanager
def detached_inputs(model: nn.Module, pattern: Pattern) -> Iterator[None]:
    """Detach what goes into the layers of ``pattern``, in forwards of ``model``."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    blocks = _count(layers)
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
    block = block_number(name)
    return block is not None and any(
        name.endswith(last) and low <= block / blocks < high for last, low, high in pattern
    )


def _count(names: Iterable[str]) -> int:
    return 1 + max(block for block in map(block_number, names) if block is not None)


def block_number(name: str) -> int | None:
    """Return the number of the repeated layer that something lies in; None if in none."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)
