"""What the search for branches knows of single operators: which of them are linear in the activation they take.

One table for all kinds of graph. ``torch.Tensor.mul_``, ``operator.imul`` and ``aten.mul_.Tensor`` are one name here.
"""

from __future__ import annotations

import enum
import operator
import re
from collections.abc import Collection
from typing import Any

from torch import fx, nn

from .._torch_compat import HigherOrderOperator, OpOverload, schema_of


class Role(enum.Enum):
    """What an operator does to an activation."""

    PASS = "moves, casts, drops or adds up elements of one activation"
    SCALE = "multiplies one activation, element by element, by something that is none"
    SUM = "adds activations, or puts them side by side"
    FACTOR = "contracts one activation with a weight: a linear, a convolution, an embedding, an einsum"
    POINTWISE = "a function of each element of one activation that is not linear"
    PRODUCT = "multiplies or contracts two activations"
    OPAQUE = "an autograd.Function, or an operator that is not torch's own"
    OTHER = "anything else, none of it linear"


def names(text: str) -> frozenset[str]:
    """Return the operator names in ``text``."""
    return frozenset(text.split())


_PASSES = names(
    "to type float half bfloat16 double type_as contiguous clone _to_copy convert_element_type positive neg "
    "view view_as reshape reshape_as _unsafe_view flatten unflatten permute transpose t swapaxes swapdims movedim mT "
    "squeeze unsqueeze expand expand_as broadcast_to broadcast_in_dim repeat tile alias select narrow slice index "
    "index_select gather take_along_dim unfold diagonal as_strided flip roll chunk split split_with_sizes tensor_split "
    "unbind getitem getattr pad constant_pad_nd lift_fresh dropout native_dropout alpha_dropout feature_dropout "
    "dropout1d dropout2d dropout3d sum mean identity"
)
_PRODUCTS = names("mul multiply")
_QUOTIENTS = names("div divide true_divide truediv")
_SUMS = names(
    "add sub subtract rsub stack cat concat concatenate hstack vstack index_copy index_add index_put scatter "
    "scatter_add setitem slice_scatter select_scatter where masked_fill masked_scatter copy"
)
_FUSED_SUMS = names("addmm addmv baddbmm")
_FACTORS = {
    **dict.fromkeys(("linear", "matmul", "mm", "mv", "addmm", "addmv"), "linear"),
    **dict.fromkeys(("bmm", "baddbmm", "einsum", "tensordot"), "einsum"),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution", "_convolution"), "conv"),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), "conv"),
    **dict.fromkeys(("embedding", "embedding_bag"), "embedding"),
}
_POINTWISE = names(
    "relu relu6 gelu silu tanh sigmoid exp softplus elu selu leaky_relu mish hardswish hardsigmoid hardtanh sin cos "
    "abs square sqrt rsqrt log pow clamp"
)
_METADATA = names(
    "size numel dim stride shape dtype device is_floating_point sym_size sym_numel item ndim requires_grad"
)
_CREATIONS = names(
    "new_zeros new_ones new_full new_empty new_empty_strided zeros_like ones_like full_like empty_like rand_like "
    "randn_like"
)
_PASSING_MODULES = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity, nn.Flatten)
_OPERANDS = ("input", "self", "other", "mat", "vec", "mat1", "mat2", "batch1", "batch2")
_OWN_MODULES = ("torch", "_operator", "operator", "builtins", "math")
_LIKE_ANOTHER = names("type_as view_as reshape_as expand_as to")


def operator_name(node: fx.Node) -> str:
    """Return an operator's name without namespace, overload, or the mark of working in place."""
    return _in_place_name(node)[0]


def is_in_place(node: fx.Node) -> bool:
    """Return whether the node writes into its first argument."""
    return node.op in ("call_function", "call_method") and _in_place_name(node)[1]


def _in_place_name(node: fx.Node) -> tuple[str, bool]:
    target: Any = node.target
    if isinstance(target, OpOverload):
        name = schema_of(target).name.split("::")[-1]
    else:
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    if target is operator.setitem:
        return name, True
    if getattr(target, "__module__", "") == "_operator" and re.fullmatch(r"i(add|sub|mul|truediv|matmul)", name):
        return name[1:], True
    if name.endswith("_") and not name.startswith("__"):
        return name[:-1], True
    return name, False


def operands(node: fx.Node) -> tuple[Any, ...]:
    """Return what a sum, or a product, is of, in its order: ``torch.add(input=h, other=d)`` is ``h + d``."""
    return (*node.args, *(node.kwargs[name] for name in _OPERANDS if name in node.kwargs))


def is_metadata(node: fx.Node) -> bool:
    """Return whether the node reads sizes or types only, or makes a tensor that has nothing else of its input."""
    if node.op == "placeholder" or node.op == "get_attr":
        return False
    name = operator_name(node)
    if name == "getattr":
        return node.args[1] in _METADATA
    return name in _METADATA or name in _CREATIONS


def data_inputs(node: fx.Node) -> tuple[fx.Node, ...]:
    """Return the inputs whose values, and not only their shape or type, reach the result."""
    if node.op not in ("call_function", "call_method", "call_module"):
        return ()
    if operator_name(node) in _LIKE_ANOTHER:
        return tuple(arg for arg in node.args[:1] if isinstance(arg, fx.Node))
    return tuple(node.all_input_nodes)


def role_of(node: fx.Node, activations: Collection[fx.Node]) -> Role:
    """Return what a node does to the activations among its inputs.

    Args:
        node: computes something from at least one activation.
        activations: those of its inputs that are activations.
    """
    if node.op == "call_module":
        owner = node.graph.owning_module
        called = owner.get_submodule(str(node.target)) if owner is not None else None
        return Role.PASS if isinstance(called, _PASSING_MODULES) else Role.OTHER
    if node.op not in ("call_function", "call_method"):
        return Role.OTHER
    return _role_by_name(operator_name(node), node, activations) if _is_torchs_own(node) else Role.OPAQUE


def _role_by_name(name: str, node: fx.Node, activations: Collection[fx.Node]) -> Role:
    first = next(iter(operands(node)), None)
    once = _times_read(node, activations) == 1
    if name in _SUMS:
        return Role.SUM
    if name in _FACTORS:
        added_to = name in _FUSED_SUMS and first in activations
        return Role.FACTOR if once and not added_to else Role.PRODUCT
    if name in _PRODUCTS:
        return Role.SCALE if once else Role.PRODUCT
    if name in _QUOTIENTS:
        return Role.SCALE if once and first in activations else Role.OTHER
    if name in _PASSES:
        return Role.PASS
    return Role.POINTWISE if name in _POINTWISE and once else Role.OTHER


def _times_read(node: fx.Node, activations: Collection[fx.Node]) -> int:
    """Return how often a node takes an activation: ``y * y`` takes one twice, and is not linear in it."""
    taken: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), taken.append)
    return sum(source in activations for source in taken)


def factor_kind(node: fx.Node) -> str:
    """Return the family of a factor: ``linear``, ``conv``, ``embedding``, ``einsum``, or ``pooling``."""
    return _FACTORS.get(operator_name(node), "pooling")


def _is_torchs_own(node: fx.Node) -> bool:
    target: Any = node.target
    if isinstance(target, str):
        return True
    if isinstance(target, OpOverload):
        return target.namespace in ("aten", "prims")
    if isinstance(target, HigherOrderOperator):
        return False
    module = getattr(target, "__module__", None) or type(target).__module__
    return module.split(".")[0] in _OWN_MODULES
