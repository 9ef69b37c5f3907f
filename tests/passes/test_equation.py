"""Equations of einsum, in each way in which they are written."""

from __future__ import annotations

import pytest
import torch
from torch import fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from skiplora_fx.passes.equation import Equation


@pytest.mark.parametrize(
    ("written", "result", "leading"),
    [
        ("bi,ri->br", "br", ()),
        ("bi, ri -> br", "br", ()),
        ("bi,ri", "br", ()),
        ("...i,ri->...r", "r", (3,)),
        ("...i,ri", "r", (3,)),
    ],
)
def test_what_an_equation_says(written: str, result: str, leading: tuple[int, ...]) -> None:
    gm = fx.symbolic_trace(lambda x, a: torch.einsum(written, x, a))
    FakeTensorProp(gm).propagate(torch.randn(3, 16), torch.randn(4, 16))
    x, a, call, _ = gm.graph.nodes
    equation = Equation.of(call)
    assert equation.letters(call) == set(result)
    assert equation.letters(x, a) >= {"i", "r"}
    assert (equation.size({"i"}), equation.size({"r"})) == (16, 4)
    assert equation.leading == leading


def test_an_operand_may_occur_twice() -> None:
    gm = fx.symbolic_trace(lambda x, a: torch.einsum("bi,ri,rj->bj", [x, a, a]))
    FakeTensorProp(gm).propagate(torch.randn(3, 16), torch.randn(4, 16))
    _, a, call, _ = gm.graph.nodes
    assert Equation.of(call).letters(a) == {"r", "i", "j"}
