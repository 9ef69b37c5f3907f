"""The operators: as torch demands them, and with the meaning that they have when no pass has run."""

from __future__ import annotations

import math

import pytest
import torch
from aten import masks
from torch import Tensor
from torch.library import opcheck

ops = torch.ops.skiplora
OPEN, SHUT = torch.tensor(True), torch.tensor(False)


def flags(*values: bool) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        pytest.param(ops.gate, lambda: (torch.randn(2, 3, requires_grad=True), OPEN, [0]), id="gate"),
        pytest.param(ops.gate_backward, lambda: (torch.randn(2, 3), SHUT, [1]), id="gate_backward by a flag"),
        pytest.param(ops.gate_backward, lambda: (torch.randn(2, 3), flags(1, 0), [1]), id="gate_backward by a vector"),
        pytest.param(ops.decide, lambda: (torch.rand(3), torch.rand(3)), id="decide"),
        pytest.param(ops.evaluate_conditions, lambda: (flags(1, 0), "0 0 1", "2 0"), id="evaluate_conditions"),
        pytest.param(
            ops.carry, lambda: ([torch.randn(3), torch.randn(3)], flags(0, 1), [0, 1], True), id="carry, zeros if none"
        ),
    ],
)
def test_torch_accepts_it(operator: torch._ops.OpOverloadPacket, arguments: object) -> None:
    checks = opcheck(operator.default, arguments())
    assert set(checks.values()) == {"SUCCESS"}


@pytest.mark.parametrize("open", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_gate_passes_values_and_stops_gradients(open: bool, dtype: torch.dtype) -> None:
    x = torch.randn(4, dtype=dtype, requires_grad=True)
    y = ops.gate(x, torch.tensor(open), [0])
    torch.testing.assert_close(y, x)
    y.backward(torch.full_like(y, 3))
    torch.testing.assert_close(x.grad, torch.full_like(x, 3 if open else 0))


def test_a_gate_returns_memory_of_its_own() -> None:
    x = torch.randn(4)
    assert ops.gate(x, OPEN, [0]).data_ptr() != x.data_ptr()


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_a_shut_gate_makes_zeros_of_anything(garbage: float) -> None:
    grad = torch.full((3,), garbage)
    torch.testing.assert_close(ops.gate_backward(grad, SHUT, [0]), torch.zeros(3))


@pytest.mark.parametrize("sites", [[0], [2], [0, 2], [0, 1, 2]])
def test_a_gate_behind_a_vector_is_open_if_any_of_its_sites_is(sites: list[int]) -> None:
    grad = torch.randn(3)
    for mask in masks(3):
        expected = grad if any(mask[site] for site in sites) else torch.zeros(3)
        torch.testing.assert_close(ops.gate_backward(grad, flags(*mask), sites), expected)


def test_a_strided_gradient_keeps_its_strides() -> None:
    grad = torch.randn(4, 3).t()
    assert ops.gate_backward(grad, SHUT, [0]).stride() == grad.stride()


@pytest.mark.parametrize(
    ("ratio", "threshold", "open"),
    [
        (0.1, 0.05, True),
        (0.01, 0.05, False),
        (0.05, 0.05, True),
        (0.0, 0.0, True),
        (1e30, math.inf, False),
        (math.inf, math.inf, True),
        (math.nan, math.inf, True),
        (math.nan, 0.0, True),
    ],
)
def test_decisions(ratio: float, threshold: float, open: bool) -> None:
    assert ops.decide(torch.tensor([ratio]), torch.tensor([threshold])).tolist() == [open]


def test_conditions_are_evaluated_on_the_host() -> None:
    # Node 2 is site 1; node 3 is "site 0, else node 2".
    table = "1 0 1 0 2 1"
    found = {mask: ops.evaluate_conditions(flags(*mask), table, "0 1 2 3").tolist() for mask in masks(2)}
    assert found == {mask: [False, True, mask[1], mask[0] or mask[1]] for mask in masks(2)}


@pytest.mark.parametrize(("conditions", "which"), [((1, 1), 0), ((1, 0), 0), ((0, 1), 1)])
def test_carry_copies_the_first_that_counts(conditions: tuple[int, int], which: int) -> None:
    operands = [torch.randn(3, 2).t(), torch.randn(3, 2).t()]
    found = ops.carry(operands, flags(*conditions), [0, 1], False)
    torch.testing.assert_close(found, operands[which], check_stride=True)
    assert found.data_ptr() != operands[which].data_ptr()


def test_carry_reads_the_conditions_that_it_is_told_to() -> None:
    operands = [torch.zeros(2), torch.ones(2)]
    torch.testing.assert_close(ops.carry(operands, flags(1, 0, 0, 1), [2, 3], True), torch.ones(2))


def test_carry_of_none_is_zeros_where_somebody_reads_it() -> None:
    operands = [torch.randn(3, 2).t(), torch.randn(3, 2).t()]
    found = ops.carry(operands, flags(0, 0), [0, 1], True)
    torch.testing.assert_close(found, torch.zeros(3, 2).t(), check_stride=True)


def test_carry_of_none_keeps_the_layout_where_nobody_does() -> None:
    operands = [torch.randn(3, 2).t(), torch.randn(3, 2).t()]
    found = ops.carry(operands, flags(0, 0), [0, 1], False)
    assert (found.shape, found.stride(), found.dtype) == ((2, 3), (1, 2), torch.float32)
