"""Which modules that ``symbolic_trace`` left whole are written as functions, and that they compute the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

from skiplora_fx.passes.inline_leaves import inline_leaves


def inlined(module: nn.Module) -> fx.GraphModule:
    gm = fx.symbolic_trace(nn.Sequential(module))
    inline_leaves(gm)
    gm.graph.lint()
    gm.recompile()
    return gm


def is_whole(gm: fx.GraphModule) -> bool:
    return bool(gm.graph.find_nodes(op="call_module"))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(8, 4), (2, 8)),
        (nn.Linear(8, 4, bias=False), (2, 8)),
        (nn.Conv2d(8, 4, 3, padding=1), (2, 8, 5, 5)),
        (nn.Conv2d(8, 4, 3, padding=1, padding_mode="circular"), (2, 8, 5, 5)),
        (nn.ConvTranspose2d(8, 4, 3), (2, 8, 5, 5)),
        (nn.ReLU(), (2, 8)),
        (nn.LayerNorm(8), (2, 8)),
    ],
    ids=str,
)
def test_it_is_inlined(module: nn.Module, shape: tuple[int, ...]) -> None:
    gm, x = inlined(module), torch.randn(shape)
    assert not is_whole(gm)
    torch.testing.assert_close(gm(x), module(x), rtol=0, atol=0)


def test_an_embedding() -> None:
    module = nn.Embedding(9, 4, max_norm=1.0)
    ids = torch.tensor([1, 3])
    torch.testing.assert_close(inlined(module)(ids), module(ids), rtol=0, atol=0)


class Linear(nn.Linear):
    """Not torch's."""


def with_a_hook() -> nn.Module:
    module = nn.Linear(8, 8)
    module.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    "module",
    [nn.Dropout(0.5), nn.BatchNorm1d(8), nn.GRU(8, 8), with_a_hook(), parametrizations.weight_norm(nn.Linear(8, 8))],
    ids=["dropout", "batch norm", "not traceable", "hook", "parametrized"],
)
def test_it_stays_whole(module: nn.Module) -> None:
    assert is_whole(inlined(module))


def test_what_the_tracer_was_asked_to_leave_whole_stays() -> None:
    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, Linear)

    model = nn.Sequential(Linear(8, 8))
    gm = fx.GraphModule(model, Tracer().trace(model))
    inline_leaves(gm)
    assert is_whole(gm)


def test_a_batch_norms_statistics_are_left_alone() -> None:
    module = nn.BatchNorm1d(8)
    inlined(module)
    assert module.num_batches_tracked == 0
    assert module.training


def test_a_module_that_is_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.linear(x))

    model, x = Twice(), torch.randn(2, 8)
    gm = fx.symbolic_trace(model)
    inline_leaves(gm)
    gm.recompile()
    torch.testing.assert_close(gm(x), model(x), rtol=0, atol=0)
