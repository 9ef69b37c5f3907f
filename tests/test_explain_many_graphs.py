"""What ``explain`` says of models that Dynamo does not take as one graph, and of what trains outside of any."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import torch
from lora_modules import WIDE, Around, Linear, batch
from torch import Tensor, nn

import skiplora_fx
from skiplora_fx.site import FAMILIES


def test_graph_breaks_are_counted_and_named() -> None:
    def forward(layer: Linear, x: Tensor) -> Tensor:
        x = layer(x)
        torch._dynamo.graph_break()
        return layer.base(x).sin()

    found = skiplora_fx.explain(Around(forward), batch())
    assert found.captured == 2
    (cut,) = found.breaks
    assert cut.place.startswith(f"{__file__}:")
    assert cut.reason.startswith("Call to `torch._dynamo.graph_break()`: User-inserted graph break")
    assert f"Graph break at {cut.place}: Call to" in str(found)
    assert "2 graphs, 1 graph break" in str(found)
    assert sum(len(graph.sites) for graph in found.graphs) == 1


class Broken(nn.Module):
    """Layers that Dynamo compiles one by one, the second and the third as one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            torch._dynamo.graph_break()
            x = layer(x).sin()
        return x


def test_a_graph_that_is_called_for_several_layers() -> None:
    found = skiplora_fx.explain(Broken(), batch())
    first, second, third = found.graphs
    assert [site.name for graph in found.graphs for site in graph.sites] == ["layers.0", "layers.1", "layers.2"]
    assert first.number != second.number == third.number
    assert found.backward == first.backward + 2 * second.backward
    # "The first half" of three is the first: nothing of it is left, and nothing of the others is saved.
    assert found.masks["the first half skipped"] == pytest.approx(first.backward / found.backward)


def test_a_break_for_which_a_whole_function_is_left_to_python_counts_once() -> None:
    (cut,) = skiplora_fx.explain(Broken(), batch()).breaks
    assert cut.place.startswith(f"{__file__}:")


def test_a_break_by_the_value_of_a_tensor() -> None:
    def forward(layer: Linear, x: Tensor) -> Tensor:
        x = layer(x)
        return x.sin() if x.sum() > 0 else x.cos()

    (cut,) = skiplora_fx.explain(Around(forward), batch()).breaks
    assert cut.reason.startswith("Data-dependent branching")


def test_a_break_that_cannot_be_resumed_from_says_why() -> None:
    class Logs:
        @property
        def function(self) -> Any:
            logging.getLogger("a model").debug("nothing that is shown")
            return torch.sin

    def forward(layer: Linear, x: Tensor) -> Tensor:
        x = layer(x)
        return Logs().function(x)

    found = skiplora_fx.explain(Around(forward), batch())
    assert [site.name for graph in found.graphs for site in graph.sites] == ["layer"]
    assert found.breaks
    assert all("step_unsupported" not in cut.reason for cut in found.breaks)


class BesideLSTM(nn.Module):
    """What Dynamo leaves to Python before an adapted layer."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.LSTM(WIDE, WIDE, batch_first=True)
        self.layer = Linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.before(x[None])[0])


class AfterDisabled(nn.Module):
    """A trained layer that the user has taken out of the compiler's sight, and one that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.layer, self.idle = nn.Linear(WIDE, WIDE), Linear(), nn.Linear(2, 2, bias=False)
        self.before.forward = torch.compiler.disable(self.before.forward)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.before(x))


class Disabled(Linear):
    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize(
    ("model", "outside", "sites"),
    [
        (BesideLSTM, {f"before.{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}, 1),
        (AfterDisabled, {"before.weight", "before.bias", "idle.weight"}, 1),
        (Disabled, {"a.weight", "b.weight"}, 0),
    ],
)
def test_what_trains_outside_any_graph(model: type[nn.Module], outside: set[str], sites: int) -> None:
    found = skiplora_fx.explain(model(), batch())
    assert {miss.name for miss in found.outside} == outside
    assert {miss.family for miss in found.outside} == {"outside any graph"} <= FAMILIES.keys()
    assert sum(len(graph.sites) for graph in found.graphs) == sites
    assert len(found.breaks) == 1
    text = str(found)
    assert f"Trained, but outside any graph that has a backward: {len(outside)}" in text
    assert f"{len(outside)} trained parameters not gated" in text
    assert ("Dynamo captured no graph" in text) == (sites == 0)
    assert {miss["name"] for miss in json.loads(found.to_json())["outside"]} == outside


def test_what_trains_in_a_graph_without_a_backward() -> None:
    def forward(layer: Linear, x: Tensor) -> Tensor:
        return layer(x).argmax(-1)

    found = skiplora_fx.explain(Around(forward), batch())
    assert {miss.name for miss in found.outside} == {"layer.a.weight", "layer.b.weight"}
    assert all("has no backward" in miss.reason for miss in found.outside)


def test_what_is_rejected_is_named_from_the_whole_model() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Broken()
            self.inner.layers[1].base.bias.requires_grad_(True)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    _, second, _ = skiplora_fx.explain(Outer(), batch()).graphs
    assert {miss.name for miss in second.rejections} == {"inner.layers.1.base.bias"}
