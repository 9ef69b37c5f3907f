"""Every shape of adapter, in torch-level and in aten-level graphs: found, or rejected by family; gradients exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from adapters import GATED, Adapter, DoRA, OneEinsum, OntoAPart
from capture import QuickBackend, dynamo_graph
from others import IGNORED, REJECTED, AutogradFunction
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import skiplora_fx
from skiplora_fx.passes import find_lora, split_joins
from skiplora_fx.passes.parameters import Parameters
from skiplora_fx.site import FAMILIES, Findings

LEVELS: dict[str, Callable[[nn.Module, Tensor], torch.fx.GraphModule]] = {
    "dynamo": lambda model, x: dynamo_graph(model, x),
    "export": lambda model, x: torch.export.export(model, (x,)).module(),
    "make_fx": lambda model, x: make_fx(lambda x: model(x))(x),
}

OTHER_KINDS = {(OneEinsum, "make_fx"): "linear→linear"}
"""What the tracer has already written as several products."""

LOST_DETACH = {(DoRA, "make_fx")}
"""Where what is traced has other gradients than the model: from torch 2.14 on make_fx writes a detach as an alias."""


def names(shape: object) -> str:
    return shape.__name__ if isinstance(shape, type) else str(shape)


def built(shape: type[Adapter]) -> tuple[Adapter, Tensor]:
    """Return a shape in float64 and an input that is no leaf, as inside a model."""
    model = shape().train()
    x = model.example()
    (model.base if model.in_single_precision else model).double()
    return model, x.double() if x.is_floating_point() else x


def search(gm: torch.fx.GraphModule) -> Findings:
    return find_lora(split_joins(gm, Parameters(gm)))


def gradients(run: Callable[[Tensor], Any], model: Adapter, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output, and the gradients of the input and of all that trains; those of None as zeros."""
    model.zero_grad(set_to_none=True)
    if x.is_floating_point():
        x = x.detach().clone().requires_grad_()
    torch.manual_seed(1)  # dropout
    out = run(x)
    out = out if isinstance(out, Tensor) else out[0]
    loss = out.sin().sum()
    if loss.requires_grad:
        loss.backward()
    leaves = {**{name: p for name, p in model.named_parameters() if p.requires_grad}, "x": x}
    found = {name: leaf.grad for name, leaf in leaves.items() if leaf.is_floating_point()}
    return out.detach(), {name: torch.zeros_like(leaves[name]) if g is None else g for name, g in found.items()}


def expected(model: Adapter, x: Tensor, scope: str, shut: bool) -> tuple[Tensor, dict[str, Tensor]]:
    whole = scope == "layer" and not isinstance(model, OntoAPart)
    model.shut, model.scope = shut, scope
    try:
        return gradients((lambda x: model(x).detach()) if shut and whole else model.forward, model, x)
    finally:
        model.shut = False


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", GATED, ids=names)
def test_it_is_found(shape: type[Adapter], level: str) -> None:
    findings = search(LEVELS[level](*built(shape)))
    assert findings.rejections == ()
    (site,) = findings.sites
    assert site.rank == GATED[shape][1]
    # A tracer may write a linear of three dimensions as a product of two, or the other way round.
    wanted = OTHER_KINDS.get((shape, level), GATED[shape][0])
    assert site.kind.replace("einsum", "linear") == wanted.replace("einsum", "linear")


@pytest.mark.parametrize("shut", [False, True], ids=["open", "shut"])
@pytest.mark.parametrize("scope", ["adapter", "layer"])
@pytest.mark.parametrize("shape", GATED, ids=names)
def test_gradients_of_the_compiled_graph(shape: type[Adapter], scope: str, shut: bool) -> None:
    model, x = built(shape)
    model.dropout = 0.0  # Inductor's decompositions draw other masks than eager; test_dropout.py is about those
    backend = QuickBackend(scope)
    # Whole, or the graph breaks at an assignment through a mask, whose backward is as long as the mask has ones.
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    gradients(compiled, model, x)
    backend.only.thresholds.fill_(math.inf if shut else 0.0)
    torch.testing.assert_close(gradients(compiled, model, x), expected(model, x, scope, shut))
    assert backend.only.opens.tolist() == [not shut]


@pytest.mark.parametrize("shut", [False, True], ids=["open", "shut"])
@pytest.mark.parametrize("scope", ["adapter", "layer"])
@pytest.mark.parametrize("level", ["export", "make_fx"])
@pytest.mark.parametrize("shape", GATED, ids=names)
def test_gradients_of_the_applied_graph(shape: type[Adapter], level: str, scope: str, shut: bool) -> None:
    model, x = built(shape)
    traced = LEVELS[level](model, x)
    options = {"scope": scope, "warmup_steps": 0, "probe_every": 0}
    gated = skiplora_fx.apply(traced, threshold=math.inf if shut else 0.0, **options)
    as_traced = not shut and (shape, level) in LOST_DETACH
    right = gradients(traced, model, x) if as_traced else expected(model, x, scope, shut)
    torch.testing.assert_close(gradients(gated, model, x), right)
    (site,) = skiplora_fx.sites(gated)
    assert site.skipped is shut
    assert all((parameter.grad is None) is shut for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", REJECTED, ids=names)
def test_it_is_rejected_by_family(shape: type[Adapter], level: str) -> None:
    findings = search(LEVELS[level](*built(shape)))
    assert findings.sites == ()
    assert {rejection.family for rejection in findings.rejections} == REJECTED[shape]
    assert REJECTED[shape] <= set(FAMILIES)


def test_an_autograd_function_cannot_be_looked_into() -> None:
    # Only Dynamo keeps it whole: the aten tracers look inside and find an ordinary branch there.
    findings = search(dynamo_graph(*built(AutogradFunction)))
    assert findings.sites == ()
    assert {rejection.family for rejection in findings.rejections} == {"opaque"}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", IGNORED, ids=names)
def test_what_is_frozen_is_not_mentioned(shape: type[Adapter], level: str) -> None:
    model, x = built(shape)
    gm = LEVELS[level](Trained(model), x)
    findings = search(gm)
    assert findings.sites == ()
    assert not any("inner" in rejection.name for rejection in findings.rejections)


class Trained(nn.Module):
    """Has something to train beside the module, as Dynamo hands over no graph that has nothing."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.head = nn.Linear(16, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x).sin())
