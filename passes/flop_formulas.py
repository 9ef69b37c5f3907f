"""FLOPs of single nodes, by torch's own formulas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import SymInt, Tensor, fx
from torch.utils.flop_counter import flop_registry

from . import operators

aten = torch.ops.aten

_SAME_FORMULA: Mapping[Any, Any] = {
    aten._scaled_dot_product_flash_attention_for_cpu: aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: aten._scaled_dot_product_flash_attention_backward,
    aten._scaled_dot_product_fused_attention_overrideable: aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_fused_attention_overrideable_backward: aten._scaled_dot_product_flash_attention_backward,
    aten._int_mm: aten.mm,
    aten._scaled_mm_v2: aten.mm,
    aten._addmm_activation: aten.addmm,
}
"""Operators that torch has no formula for, and another that takes the same arguments, as far as it reads them."""


def _grouped_product(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """Return the FLOPs of one product for each group, where offsets split what is no dimension of its own."""
    groups = len(a) if a.dim() == b.dim() == 3 else 1
    return 2 * groups * a.shape[-2] * a.shape[-1] * b.shape[-1]


def _grouped_product_backward(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    return 2 * _grouped_product(a, b)  # a gradient of each


_OWN_FORMULA: Mapping[str, Any] = {
    "aten._grouped_mm": _grouped_product,
    "aten._scaled_grouped_mm": _grouped_product,
    # What transformers multiplies a mixture's experts with where torch has no kernel: float32 on the CPU.
    "transformers.grouped_mm_fallback": _grouped_product,
    "transformers.grouped_mm_fallback_backward": _grouped_product_backward,
}
"""Formulas of operators that torch has none for and that resemble none it has one for, by name."""


def flops_of(node: fx.Node) -> int | None:
    """Return the FLOPs of one node of an aten-level graph, or None if no formula covers its operator."""
    formula = _formula(node) if node.op == "call_function" else None
    return None if formula is None else _count(formula, node)


def _formula(node: fx.Node) -> Any:
    target: Any = node.target
    packet = getattr(target, "overloadpacket", target)
    return _OWN_FORMULA.get(operators.name_of(node)) or flop_registry.get(_SAME_FORMULA.get(packet, packet))


def _count(formula: Any, node: fx.Node) -> int:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: _concrete(source.meta.get("val")))
    return int(formula(*args, **kwargs, out_val=_concrete(node.meta.get("val"))))


def _concrete(value: Any) -> Any:
    """Return a tensor's shape in numbers: the sizes it was traced with, where they may vary."""
    if isinstance(value, (tuple, list)):
        return type(value)(_concrete(part) for part in value)
    if isinstance(value, Tensor):
        return torch.empty([number_of(size) for size in value.shape], device="meta", dtype=value.dtype)
    return number_of(value) if isinstance(value, SymInt) else value


def number_of(size: int | SymInt) -> int:
    """Return a size as a number: where it may vary, that which it was traced with, and 1 where that is not known."""
    return size if isinstance(size, int) else int(size.node.hint) if size.node.has_hint() else 1
