"""What the passes know of single operators: how zeros move through them, and which only rename memory.

Tables by name, not by object, as not every build of torch has every operator.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import SymBool, SymFloat, SymInt, Tensor, fx

from .._torch_compat import OpOverload, schema_of

COND = torch.ops.higher_order.cond


def name_of(node: fx.Node) -> str:
    """Return the operator of a node without its overload, such as ``aten.mm``."""
    target = node.target
    return _name(target) if isinstance(target, OpOverload) else getattr(target, "__name__", str(target))


def _name(target: OpOverload) -> str:
    return f"{target.namespace}.{schema_of(target).name.split('::')[-1]}"


def _aten(names: str) -> tuple[str, ...]:
    return tuple(f"aten.{name}" for name in names.split())


ZERO_IF_FIRST: frozenset[str] = frozenset(
    (
        # The result is linear in the first argument, which is the gradient in every *_backward here.
        *_aten("neg clone _to_copy contiguous sum mean cumsum div true_divide abs sign relu tanh_backward"),
        *_aten("view reshape _unsafe_view permute t transpose expand unsqueeze squeeze select slice alias detach"),
        *_aten("split split_with_sizes unbind chunk as_strided diagonal unfold repeat flip roll gather index"),
        *_aten("index_select constant_pad_nd slice_backward select_backward diagonal_backward unfold_backward"),
        *_aten("threshold_backward gelu_backward silu_backward sigmoid_backward hardtanh_backward mish_backward"),
        *_aten("leaky_relu_backward elu_backward hardswish_backward hardsigmoid_backward softplus_backward"),
        *_aten("native_dropout_backward native_layer_norm_backward native_group_norm_backward"),
        *_aten("_fused_rms_norm_backward native_batch_norm_backward _softmax_backward_data _log_softmax_backward_data"),
        *_aten("embedding_dense_backward convolution_backward avg_pool2d_backward max_pool2d_with_indices_backward"),
        *_aten("nll_loss_backward upsample_nearest2d_backward upsample_bilinear2d_backward"),
        *_aten("_scaled_dot_product_flash_attention_for_cpu_backward _scaled_dot_product_flash_attention_backward"),
        *_aten("_scaled_dot_product_efficient_attention_backward _scaled_dot_product_cudnn_attention_backward"),
        *_aten("_flash_attention_backward _efficient_attention_backward"),
        "prims.convert_element_type",
        "prims.broadcast_in_dim",
        "prims.squeeze",
        "prims.sum",
    )
)
"""Zero where the first argument is zero."""

ZERO_IF_ANY: frozenset[str] = frozenset(_aten("mul mm bmm mv dot matmul outer linear"))
"""Products: zero where any tensor argument is zero."""

ZERO_IF_ALL: frozenset[str] = frozenset(
    (*_aten("add sub cat stack where index_put _unsafe_index_put scatter_add index_add slice_scatter select_scatter"),)
)
"""Sums and choices: zero only where all floating tensor arguments are zero, and no number is added."""

ZERO_IF_BOTH_TERMS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "aten.addmm": ((0,), (1, 2)),
    "aten.baddbmm": ((0,), (1, 2)),
    "aten.addmv": ((0,), (1, 2)),
    "aten.addcmul": ((0,), (1, 2)),
    "aten.addcdiv": ((0,), (1,)),
    "prims.fma": ((2,), (0, 1)),
}
"""A sum of two terms: zero where in each of them one of the arguments at these positions is zero."""

VIEWS: frozenset[str] = frozenset(
    (
        *_aten("view reshape _unsafe_view permute t transpose expand unsqueeze squeeze select slice alias detach"),
        *_aten("split split_with_sizes unbind chunk diagonal unfold as_strided"),
        "prims.broadcast_in_dim",
    )
)
"""Operators that only give memory another shape: cheaper to repeat than to hand over."""

CREATIONS: frozenset[str] = frozenset(
    (*_aten("full zeros ones empty scalar_tensor arange full_like zeros_like ones_like"), "prims.iota")
)
"""Operators that make a tensor from numbers: cheaper to repeat than to hand over."""

COMMUNICATE = ("_c10d_functional", "c10d", "_dtensor")
"""What the namespaces of operators that exchange with other processes begin with."""

_DRAW_BY_SEED = frozenset(("prims.inductor_random", "prims.inductor_randint"))

_NEARLY_POINTWISE: frozenset[str] = frozenset((*_aten("clone _to_copy slice_scatter"), "prims.convert_element_type"))


def is_pointwise(node: fx.Node) -> bool:
    """Return whether the node does no more than touch each element once: cheaper to run than to ask whether to."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return False
    return torch.Tag.pointwise in node.target.tags or name_of(node) in _NEARLY_POINTWISE


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """Return the inputs of a node that hold a tensor, or a tuple of them."""
    return [source for source in node.all_input_nodes if holds_tensors(source)]


def holds_tensors(node: fx.Node) -> bool:
    """Return whether the node's value is a tensor or a tuple of them, not a number or a submodule."""
    value = node.meta.get("val")
    return isinstance(value, (Tensor, tuple, list))


def is_number(node: fx.Node) -> bool:
    """Return whether the node holds a number, as a size is, and so has no memory."""
    return isinstance(node.meta.get("val"), (int, float, SymInt, SymFloat, SymBool))


def is_view(node: fx.Node) -> bool:
    """Return whether the node only renames memory: a view, or one part of several views."""
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and is_view(node.args[0])
    return name_of(node) in VIEWS


def readers_through_views(node: fx.Node) -> Iterator[fx.Node]:
    """Yield who reads what the node gives, by the name of a view of it too."""
    for user in node.users:
        if is_view(user):
            yield from readers_through_views(user)
        else:
            yield user


def is_creation(node: fx.Node) -> bool:
    """Return whether the node makes a tensor from numbers alone."""
    return node.op == "call_function" and name_of(node) in CREATIONS and not tensor_inputs(node)


def is_part(node: fx.Node) -> bool:
    """Return whether the node picks one result of an operator that has several and is no view."""
    return node.op == "call_function" and node.target is operator.getitem and not is_view(node)


def must_always_run(node: fx.Node) -> bool:
    """Return whether the node may not be skipped whoever reads it: side effects, random numbers, collectives."""
    target = node.target
    if target is operator.getitem:
        return False
    if not isinstance(target, OpOverload):
        return True  # a higher-order operator, or a Python function on numbers
    if schema_of(target).is_mutable or draws(node):
        return True
    return target.namespace.startswith(COMMUNICATE) or node.is_impure(impure_random=False)


def draws(node: fx.Node) -> bool:
    """Return whether the node takes random numbers from a generator."""
    return isinstance(node.target, OpOverload) and call_draws(node.target, node.args, node.kwargs)


def call_draws(target: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a call takes random numbers from a generator.

    Attention does only if it drops something, and its backward takes the seed that the forward drew.
    """
    if torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    arguments = [argument.name for argument in schema_of(target).arguments]
    if _name(target) in _DRAW_BY_SEED or "philox_seed" in arguments:
        return False
    given = {**dict(zip(arguments, args, strict=False)), **kwargs}
    return "dropout_p" not in arguments or given.get("dropout_p", 0.0) != 0.0


def floating(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """Return those of ``nodes`` that hold a floating tensor; masks and indices are never a zero that matters."""
    return [node for node in nodes if not isinstance(val := node.meta.get("val"), Tensor) or val.is_floating_point()]
