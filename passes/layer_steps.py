"""What a node is to the search for layers: a step, or another name of one."""

from __future__ import annotations

import operator
from collections.abc import Container, Iterator

from torch import Tensor, fx

from .._torch_compat import FORCE_STRIDE_ORDER, OpOverload, schema_of
from ..gate import RELEASE
from .operators import COMMUNICATE, COND, draws, is_creation, is_view, name_of

_SEEDS = frozenset(("prims.inductor_seed", "prims.inductor_seeds", "prims.inductor_lookup_seed"))
_FROM_A_STATE = frozenset(("run_and_save_rng_state", "run_with_rng_state", "graphsafe_run_with_rng_state"))
"""What activation checkpointing makes of an operator that may draw, as of attention, with or without a dropout."""
_WRITTEN_IN_PLACE = frozenset(
    f"aten.{name}"
    for name in ("index_put", "_unsafe_index_put", "slice_scatter", "select_scatter", "as_strided_scatter")
)
"""What Inductor turns into a write in place where the old value is not read again, in the graph itself alone."""
_PRODUCTS = frozenset(f"aten.{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "convolution"))


def is_step(node: fx.Node) -> bool:
    """Return whether a node computes: is no constant, no seed, no number, no part of a result, no name of memory."""
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    value = node.meta.get("val")
    is_number = value is not None and not isinstance(value, (Tensor, tuple, list))
    return not (is_number or is_renaming(node) or is_creation(node) or name_of(node) in _SEEDS)


def is_renaming(node: fx.Node) -> bool:
    """Return whether a node gives memory that is there already another name or shape."""
    return is_view(node) or node.target is FORCE_STRIDE_ORDER


def stays_with_readers(node: fx.Node, steps: Container[fx.Node]) -> bool:
    """Return whether a function that holds ``steps`` repeats a node: a constant, or another name of a step's result."""
    if is_creation(node):
        return not node.all_input_nodes
    if node.target is not operator.getitem and not is_renaming(node):
        return False
    return any(source in steps or stays_with_readers(source, steps) for source in node.all_input_nodes)


def readers(node: fx.Node) -> Iterator[fx.Node]:
    """Yield who reads what a node gives, a part of it, or another name of it."""
    for user in node.users:
        if user.target is operator.getitem or is_renaming(user):
            yield from readers(user)
        else:
            yield user


def has_own_kernel(step: fx.Node) -> bool:
    """Return whether a step is fused with none of its neighbours."""
    if not isinstance(step.target, OpOverload) or step.target.namespace not in ("aten", "prims"):
        return True
    name = name_of(step)
    return name in _PRODUCTS or "attention" in name


def belongs_in_layers(step: fx.Node) -> bool:
    """Return whether a step may be moved into a function: it does nothing but compute tensors, always the same ones."""
    if step.target in (COND, RELEASE):
        return True
    return _only_computes(step) and not draws(step)


def stands_between_layers(step: fx.Node) -> bool:
    """Return whether a step may be moved into no function, and what lies before and behind it may: it only draws."""
    return name_of(step) in _FROM_A_STATE or (_only_computes(step) and draws(step))


def _only_computes(step: fx.Node) -> bool:
    """Return whether a step does nothing but compute tensors, be it of random numbers."""
    if not isinstance(step.target, OpOverload) or step.target.namespace.startswith(COMMUNICATE):
        return False
    schema = schema_of(step.target)
    aliases = any(result.alias_info is not None for result in schema.returns)
    if schema.is_mutable or aliases or _is_written_in_place(step) or "unbacked_bindings" in step.meta:
        return False
    return not step.is_impure(impure_random=False)


def _is_written_in_place(step: fx.Node) -> bool:
    """Return whether Inductor may turn a step into a write: a constant is made anew in each function that reads it."""
    return name_of(step) in _WRITTEN_IN_PLACE and not is_creation(step.all_input_nodes[0])
