"""FLOPs by torch's formulas, each counted where its condition says that it runs."""

from __future__ import annotations

import pytest
import torch
from aten import gate, trace
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from skiplora_fx.passes import find_regions, liveness
from skiplora_fx.passes.flop_formulas import number_of
from skiplora_fx.passes.flops import Flops, flops

SQUARE = 2 * 4**3  # a product of two matrices of 4 × 4


def counted_flops(graph: fx.Graph) -> Flops:
    analysis = liveness(graph, 1)
    return flops(graph, analysis, find_regions(graph, analysis))


def square() -> Tensor:
    return torch.randn(4, 4)


def test_each_product_is_counted_under_its_condition() -> None:
    def backward(opens: Tensor, grad: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        above = grad @ weight
        return above, gate(above, opens, 0) @ weight @ weight

    counted = counted_flops(trace(backward, torch.ones(1, dtype=torch.bool), square(), square()).graph)
    assert counted.total == 3 * SQUARE
    assert counted.under([[True], [False]]) == [3 * SQUARE, SQUARE]
    assert counted.uncounted == {}


def test_what_has_no_formula_is_named_and_views_are_not() -> None:
    def backward(opens: Tensor, grad: Tensor) -> Tensor:
        return gate(grad.sin().view(2, 8), opens, 0).softmax(-1).cumsum(0)

    counted = counted_flops(trace(backward, torch.ones(1, dtype=torch.bool), square()).graph)
    assert counted.total == 0
    assert counted.uncounted == {"aten._softmax": 1, "aten.cumsum": 1}


def test_sizes_that_vary_are_counted_as_they_were_traced() -> None:
    def backward(opens: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
        return gate(grad, opens, 0) @ weight

    graph = trace(backward, torch.ones(1, dtype=torch.bool), torch.randn(6, 4), square(), mode="symbolic").graph
    assert counted_flops(graph).total == 2 * 6 * 4 * 4


def test_attention_on_the_cpu_counts_as_the_flash_kernel_does() -> None:
    def backward(opens: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(gate(q, opens, 0), k, k)[0]

    q, k = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8)
    counted = counted_flops(trace(backward, torch.ones(1, dtype=torch.bool), q, k).graph)
    assert counted.total == 2 * 2 * (2 * 3 * 5 * 7 * 8)
    assert counted.uncounted == {}


@pytest.mark.parametrize(
    ("left", "right", "products"),
    [
        ((24, 16), (2, 16, 32), [(8, 16, 32), (16, 16, 32)]),  # rows of the left are split
        ((2, 16, 32), (32, 24), [(16, 32, 8), (16, 32, 16)]),  # columns of the right
        ((16, 24), (24, 32), [(16, 8, 32), (16, 16, 32)]),  # what is summed over
    ],
)
def test_grouped_products_count_as_one_for_each_group(
    left: tuple[int, ...], right: tuple[int, ...], products: list[tuple[int, int, int]]
) -> None:
    def backward(opens: Tensor, a: Tensor, b: Tensor, offsets: Tensor) -> Tensor:
        return torch.ops.aten._grouped_mm(gate(a, opens, 0), b, offsets)

    a, b = torch.randn(left, dtype=torch.bfloat16), torch.randn(right, dtype=torch.bfloat16)
    offsets = torch.tensor([8, 24], dtype=torch.int32)
    counted = counted_flops(trace(backward, torch.ones(1, dtype=torch.bool), a, b, offsets).graph)
    assert counted.total == sum(2 * rows * inner * columns for rows, inner, columns in products)
    assert counted.uncounted == {}


def test_a_size_that_is_known_only_when_the_graph_runs_counts_as_one() -> None:
    assert number_of(ShapeEnv().create_unbacked_symint()) == 1
