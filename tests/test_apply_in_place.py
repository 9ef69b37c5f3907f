"""``apply`` on models that write in place: values and gradients are the model's own, and nothing is copied."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from aten import CountCalls
from lora_modules import RANK, WIDE, Linear, batch
from test_apply import AT_ONCE, GRAPHS, gradients
from torch import Tensor, nn

import skiplora_fx


class WritesIntoAColumn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Linear()

    def forward(self, x: Tensor) -> Tensor:
        y = (x + self.layer(x).tanh()).clone()
        y[:, 0].add_(1.0)
        return self.layer(y)


class ScalesHeads(WritesIntoAColumn):
    """``q.view().transpose().mul_()``, as attention does."""

    def forward(self, x: Tensor) -> Tensor:
        q = self.layer(x).view(-1, 2, WIDE // 2).transpose(0, 1)
        return x + q.mul_(0.5).transpose(0, 1).reshape(-1, WIDE)


class ReadsAViewThatWasWritten(WritesIntoAColumn):
    """What is read through a view was written by another layer after the view was made."""

    def forward(self, x: Tensor) -> Tensor:
        held = torch.zeros_like(x)
        view = held.view(-1)
        held.add_(self.layer(x))
        return view.view(x.shape) * self.layer(x.tanh())


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Conv1d(1, 4, 3, padding=1).requires_grad_(False)
        self.a, self.b = nn.Conv1d(1, 2, 3, padding=1, bias=False), nn.Conv1d(2, 4, 1, bias=False)
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(4 * WIDE, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)
        return self.head(self.act((self.base(x) + self.b(self.a(x))).flatten(1)))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "a column": WritesIntoAColumn,
    "heads": ScalesHeads,
    "a view that was written": ReadsAViewThatWasWritten,
    "relu behind a layer": lambda: nn.Sequential(Linear(), nn.ReLU(inplace=True), nn.Linear(WIDE, RANK)),
    "relu behind a flattened layer": lambda: nn.Sequential(Linear(), nn.Flatten(0), nn.ReLU(inplace=True)),
    "relu behind a convolution": Convolution,
}


@pytest.mark.parametrize("scope", ["adapter", "layer"])
@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.parametrize("name", MODELS)
def test_open_gates_change_nothing(name: str, kind: str, scope: str) -> None:
    model, x = MODELS[name]().double(), batch().double()
    gated = GRAPHS[kind](model, x, {"scope": scope, "threshold": 0.0, **AT_ONCE})
    torch.testing.assert_close(gradients(gated, model, x.clone()), gradients(model, model, x.clone()))


@pytest.mark.parametrize("scope", ["adapter", "layer"])
@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_copied(name: str, scope: str) -> None:
    model, x = MODELS[name](), batch()
    gated = skiplora_fx.apply(model, x, scope=scope, threshold=0.0, **AT_ONCE)
    copies = (torch.ops.aten.clone.default, torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)
    with CountCalls(*copies) as wanted:
        model(x)
    with CountCalls(*copies) as found:
        gated(x)
    assert found.calls == wanted.calls


def test_the_caller_may_write_into_an_output() -> None:
    model, x = Linear().double(), batch().double()
    gated = skiplora_fx.apply(model, x, threshold=0.0, **AT_ONCE)
    found = gradients(lambda x: gated(x).mul_(2.0), model, x)
    torch.testing.assert_close(found, gradients(lambda x: model(x).mul_(2.0), model, x))
