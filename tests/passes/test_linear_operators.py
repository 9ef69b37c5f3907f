"""One name and one role for an operator, however a graph writes it."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from skiplora_fx.passes.linear_operators import Role, is_in_place, is_metadata, operator_name, role_of

aten = torch.ops.aten


def call(target: Any, *arguments: Any, activations: int = 1) -> tuple[fx.Node, list[fx.Node]]:
    """Return a call of ``target`` on activations, then on ``arguments``."""
    graph = fx.Graph()
    inputs = [graph.placeholder(f"x{number}") for number in range(activations)]
    given = [graph.placeholder("w") if argument == "w" else argument for argument in arguments]
    create = graph.call_method if isinstance(target, str) else graph.call_function
    return create(target, (*inputs, *given)), inputs


@pytest.mark.parametrize(
    ("target", "name", "in_place"),
    [
        (operator.mul, "mul", False),
        (operator.imul, "mul", True),
        (torch.mul, "mul", False),
        ("mul", "mul", False),
        ("mul_", "mul", True),
        (aten.mul.Tensor, "mul", False),
        (aten.mul_.Tensor, "mul", True),
        (operator.iadd, "add", True),
        (operator.setitem, "setitem", True),
        (operator.getitem, "getitem", False),
        ("__getitem__", "__getitem__", False),
        (F.linear, "linear", False),
        (aten.linear.default, "linear", False),
    ],
)
def test_one_name(target: Any, name: str, in_place: bool) -> None:
    node, _ = call(target, "w")
    assert (operator_name(node), is_in_place(node)) == (name, in_place)


@pytest.mark.parametrize(
    ("target", "arguments", "activations", "role"),
    [
        (F.linear, ("w",), 1, Role.FACTOR),
        (aten.mm.default, ("w",), 1, Role.FACTOR),
        (torch.matmul, (), 2, Role.PRODUCT),
        (aten.bmm.default, (), 2, Role.PRODUCT),
        (F.conv2d, ("w",), 1, Role.FACTOR),
        (F.embedding, ("w",), 1, Role.FACTOR),
        (torch.addmm, ("w", "w"), 1, Role.PRODUCT),  # what is added to is the activation: a fused join
        (operator.mul, (2.0,), 1, Role.SCALE),
        (operator.mul, ("w",), 1, Role.SCALE),
        (operator.mul, (), 2, Role.PRODUCT),
        (operator.truediv, (2.0,), 1, Role.SCALE),
        (operator.truediv, (), 2, Role.OTHER),
        (operator.add, (), 2, Role.SUM),
        (aten.index_put_.default, ([], "w"), 1, Role.SUM),
        ("to", (torch.float32,), 1, Role.PASS),
        (aten._to_copy.default, (), 1, Role.PASS),
        (F.dropout, (0.5,), 1, Role.PASS),
        (F.relu, (), 1, Role.POINTWISE),
        (F.layer_norm, ([4],), 1, Role.OTHER),
        (aten._softmax.default, (-1, False), 1, Role.OTHER),
        (torch.ops.skiplora.carry.default, (), 1, Role.OPAQUE),
        (aten.detach.default, (), 1, Role.OTHER),  # no gradient comes back through it
    ],
)
def test_roles(target: Any, arguments: tuple[Any, ...], activations: int, role: Role) -> None:
    node, inputs = call(target, *arguments, activations=activations)
    assert role_of(node, inputs) is role


def test_a_divisor_is_no_scale() -> None:
    graph = fx.Graph()
    weight, x = graph.placeholder("w"), graph.placeholder("x")
    assert role_of(graph.call_function(operator.truediv, (weight, x)), [x]) is Role.OTHER


def test_modules_that_symbolic_trace_leaves_whole() -> None:
    gm = fx.symbolic_trace(nn.Sequential(nn.Dropout(), nn.LayerNorm(4)))
    x, dropout, norm, _ = gm.graph.nodes
    assert role_of(dropout, [x]) is Role.PASS
    assert role_of(norm, [dropout]) is Role.OTHER


@pytest.mark.parametrize(
    ("target", "arguments", "metadata"),
    [
        ("size", (), True),
        (getattr, ("shape",), True),
        (getattr, ("T",), False),
        (getattr, ("real",), False),
        ("new_zeros", (3,), True),
        (torch.randn_like, (), True),
        ("t", (), False),
    ],
)
def test_metadata(target: Any, arguments: tuple[Any, ...], metadata: bool) -> None:
    assert is_metadata(call(target, *arguments)[0]) is metadata
