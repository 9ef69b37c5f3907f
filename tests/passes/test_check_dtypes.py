"""Products of tensors that differ in dtype, which run on fake tensors and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from skiplora_fx._torch_compat import fake_propagate
from skiplora_fx.passes.check_dtypes import check_dtypes


def traced(x: Tensor) -> fx.Graph:
    class Multiply(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight)

    gm = fx.symbolic_trace(Multiply())
    fake_propagate(gm, [x])
    return gm.graph


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_it_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(RuntimeError, match=f"linear multiplies tensors of the same dtype only, and was given {dtype}"):
        check_dtypes(traced(torch.ones(4, 4, dtype=dtype)))


def test_it_is_let_through() -> None:
    check_dtypes(traced(torch.ones(4, 4)))


def test_autocast_may_make_them_the_same() -> None:
    graph = traced(torch.ones(4, 4, dtype=torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        check_dtypes(graph)
