"""Parameters are known in every kind of graph, by what they are called in the model where the graph tells."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from capture import dynamo_graph
from lora_modules import Linear, batch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from skiplora_fx.passes.parameters import Lifted, Parameter, Parameters, label

TRACERS: dict[str, Callable[[nn.Module], fx.GraphModule]] = {
    "dynamo": lambda model: dynamo_graph(model, batch()),
    "export": lambda model: torch.export.export(model, (batch(),)).module(),
}


@pytest.mark.parametrize("tracer", TRACERS)
def test_names_and_what_trains(tracer: str) -> None:
    model = nn.Sequential(Linear(train_a=False))
    found = {parameter.path: parameter.trained for parameter in Parameters(TRACERS[tracer](model))}
    assert found == {"0.base.weight": False, "0.base.bias": False, "0.a.weight": False, "0.b.weight": True}


def test_names_that_make_fx_has_lost() -> None:
    model = Linear(train_a=False)
    found = list(Parameters(make_fx(lambda x: model(x))(batch())))
    assert [parameter.trained for parameter in found] == [False, False, False, True]
    assert not any(parameter.named for parameter in found)


def test_one_parameter_in_several_places() -> None:
    model = Linear()
    gm = make_fx(lambda x: model(model(x)))(batch())
    parameters = Parameters(gm)
    assert len(list(parameters)) == 4
    seeds = parameters.seeds(gm.graph)
    assert len({roots for roots in seeds.values() if roots}) == 4


def test_lifted_parameters_are_those_that_the_caller_names() -> None:
    gm = make_fx(lambda w, x: x @ w)(torch.randn(4, 4), torch.randn(4, 4))
    weight, x = gm.graph.find_nodes(op="placeholder")
    assert list(Parameters(gm)) == []
    parameters = Parameters(gm, {weight.name: Lifted("layer.weight", True)})
    assert list(parameters) == [Parameter(weight, "layer.weight", True, True)]
    assert parameters.seeds(gm.graph)[x] is None


def join(module: str = "") -> fx.Node:
    node = fx.Graph().placeholder("add")
    if module:
        node.meta["nn_module_stack"] = {"1": (f"L['self']._modules['{module}']", nn.Module)}
    return node


def named(*paths: str) -> list[Parameter]:
    node = fx.Graph().placeholder("p")
    return [Parameter(node, path, True, True) for path in paths]


@pytest.mark.parametrize(
    ("paths", "module", "expected"),
    [
        (["q.lora_A.default.weight", "q.lora_B.default.weight"], "q", ("q", "default")),
        (["q.a.weight", "q.b.weight"], "", ("q", "")),
        (["q.lora_A", "q.lora_B"], "", ("q", "")),
        (["a.weight", "b.weight"], "", ("", "")),
        (["q.miss.default"], "q", ("q", "default")),
        (["q.down.0.weight", "q.up.0.weight"], "", ("q", "")),
        (["k.bank.0", "q.buffer.default"], "q", ("q", "default")),  # the first lies with the first layer that uses it
    ],
)
def test_labels(paths: list[str], module: str, expected: tuple[str, str]) -> None:
    assert label(named(*paths), join(module)) == expected


def test_without_any_name_the_joins_is_taken() -> None:
    unnamed = [Parameter(fx.Graph().placeholder("p"), "_param_constant0", True, False)]
    assert label(unnamed, join()) == ("add", "")
