"""Nodes of FX graphs as records: the same text in every process."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import SymBool, SymFloat, SymInt, Tensor, fx

from .._torch_compat import OpOverload
from ..passes.dataflow import value_of
from ..passes.find_lora import source_line
from ..passes.flop_formulas import flops_of
from ..passes.parameters import module_of
from .records import NodeRecord, TensorRecord

Name = Callable[[fx.Node], str]


def record_node(node: fx.Node, name_of: Name, **more: Any) -> NodeRecord:
    """Return the record of a node.

    Args:
        node: of a graph of any kind.
        name_of: gives the name under which a node is recorded.
        more: fields that only the caller knows.
    """
    stack = _module_stack(node)
    return NodeRecord(
        name=name_of(node),
        op=node.op,
        target=target_name(node.target),
        args=_encode(list(node.args), name_of),
        kwargs={key: _encode(value, name_of) for key, value in sorted(node.kwargs.items())},
        tensors=_tensors(value_of(node)),
        module=module_path(node),
        module_type=_class_name(list(stack.values())[-1][1]) if stack else "",
        source=portable(source_line(node)),
        origin=_origin(node),
        flops=flops_of(node) if _is_aten(node) else None,
        **more,
    )


def module_path(node: fx.Node) -> str:
    """Return the path of the module that a node was traced in; for a derivative, that of what it derives."""
    if "nn_module_stack" not in node.meta and "fwd_nn_module_stack" in node.meta:
        forward = fx.Graph().placeholder("forward")
        forward.meta["nn_module_stack"] = node.meta["fwd_nn_module_stack"]
        return module_of(forward)
    return module_of(node)


def target_name(target: Any) -> str:
    """Return a target's qualified name, which unlike ``str`` holds no address."""
    if isinstance(target, str):
        return target
    if isinstance(target, OpOverload):
        return f"{target.namespace}.{target.name().rpartition('::')[2]}"
    name = getattr(target, "__qualname__", None) or getattr(target, "__name__", None)
    module = getattr(target, "__module__", None) or ""
    if name is None:
        return _without_address(str(target))
    return f"{module}.{name}" if module and module != "builtins" else str(name)


def _module_stack(node: fx.Node) -> Mapping[str, Any]:
    return node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}


def _class_name(kind: Any) -> str:
    return kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def _is_aten(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and "val" in node.meta


def _origin(node: fx.Node) -> tuple[str, ...]:
    """Return the names along the node's first provenance, from the earliest graph on."""
    names: list[str] = []
    ahead = node.meta.get("from_node")
    while ahead:
        names.append(ahead[0].name)
        ahead = ahead[0].from_node
    return tuple(dict.fromkeys(name for name in reversed(names) if name != node.name))


def _tensors(value: Any) -> tuple[TensorRecord, ...]:
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(_tensor(part) for part in parts if isinstance(part, Tensor))


def _tensor(value: Tensor) -> TensorRecord:
    stride = value.stride() if value.layout is torch.strided else ()
    return TensorRecord(_short(value.dtype), _sizes(value.shape), _sizes(stride), str(value.device))


def _sizes(sizes: Any) -> tuple[int | str, ...]:
    return tuple(size if isinstance(size, int) else str(size) for size in sizes)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _encode(value: Any, name_of: Name) -> Any:
    if isinstance(value, fx.Node):
        return {"node": name_of(value)}
    if isinstance(value, (list, tuple)):
        return [_encode(part, name_of) for part in value]
    if isinstance(value, dict):
        return {"dict": {str(key): _encode(part, name_of) for key, part in value.items()}}
    if isinstance(value, slice):
        return {"slice": [_encode(part, name_of) for part in (value.start, value.stop, value.step)]}
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return {"literal": _literal(value)}


def _literal(value: Any) -> str:
    if isinstance(value, (float, complex, torch.dtype, torch.device, SymInt, SymFloat, SymBool)):
        return str(value)
    if isinstance(value, Tensor):
        return f"tensor {_short(value.dtype)} {list(_sizes(value.shape))}"
    return target_name(value) if callable(value) else _without_address(str(value))


def _without_address(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def portable(source: str) -> str:
    """Return a place in the source without the folder that packages are installed in."""
    return re.sub(r"^.*[/\\](site|dist)-packages[/\\]", "", source)
