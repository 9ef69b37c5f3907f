"""Each layer compiled by itself: one graph serves all, and what lies below the lowest open gate is left out too."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence

import models
import oracle
import pytest
import torch
from test_work_not_done import products_in_backward
from torch import Tensor, nn

import skiplora_fx

SHARES_COMPILED = True
LAYERS = 4
SCOPES = ("adapter", "layer")


def layers_of(model: nn.Module) -> nn.ModuleList:
    return model.base_model.model.model.layers


def compiled(model: nn.Module, **options: object) -> nn.Module:
    """Return a copy whose layers are compiled one by one, every gate open."""
    model = copy.deepcopy(model)
    usual = {"decision": "previous", "threshold": 0.0, "warmup_steps": 0, "probe_every": 0}
    for layer in layers_of(model):
        layer.compile(backend="skiplora", options={**usual, **options})
    loss_of(model)().backward()
    return model


def frozen(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """Return a copy whose layers Inductor compiles one by one, the adapters called ``names`` frozen."""
    model = copy.deepcopy(model)
    for name, layer in oracle.adapted_layers(model).items():
        if name in names:
            layer.requires_grad_(False)
    for layer in layers_of(model):
        layer.compile(backend="inductor")
    loss_of(model)().backward()
    return model


def loss_of(model: nn.Module) -> Callable[[], Tensor]:
    return lambda: model(**models.tokens()).loss


def shut(model: nn.Module, names: Sequence[str]) -> None:
    for name in oracle.adapted_layers(model):
        skiplora_fx.set_threshold(model, math.inf if name in names else 0.0, name)


def check(gated: nn.Module, eager: nn.Module, scope: str, names: Sequence[str]) -> None:
    """Check a step with ``names`` shut against eager ``.detach()``."""
    shut(gated, names)
    found = oracle.gradients(gated, loss_of(gated))
    with oracle.detached(eager, scope, {name: name not in names for name in oracle.adapted_layers(eager)}):
        wanted = oracle.gradients(eager, loss_of(eager))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def eager() -> nn.Module:
    torch.manual_seed(0)
    return models.with_lora(models.llama(LAYERS)).train()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("layer", marks=pytest.mark.xdist_group("layers one by one: layer")),
        pytest.param("adapter", marks=[pytest.mark.slow, pytest.mark.xdist_group("layers one by one: adapter")]),
    ],
)
def scope(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def gated(eager: nn.Module, scope: str) -> Iterator[nn.Module]:
    torch.compiler.reset()
    yield compiled(eager, scope=scope)
    torch.compiler.reset()


def test_gradients_equal_eager_detach(gated: nn.Module, eager: nn.Module, scope: str) -> None:
    names = list(oracle.adapted_layers(eager))
    half = len(names) // 2
    for shut_ones in ([], names, names[:half], names[half:], names[1 : half + 1], names[::2], names[:1]):
        check(gated, eager, scope, shut_ones)


def test_one_graph_serves_all_layers_whose_input_wants_a_gradient(gated: nn.Module) -> None:
    names = list(oracle.adapted_layers(gated))
    with torch.compiler.set_stance("fail_on_recompile"):
        for count in range(len(names) + 1):
            shut(gated, names[:count])
            loss_of(gated)().backward()
    assert len({site.name for site in skiplora_fx.sites(gated)}) == len(names)


def test_the_lower_half_shut_does_the_work_of_the_lower_half_frozen(gated: nn.Module, eager: nn.Module) -> None:
    names = list(oracle.adapted_layers(eager))
    lower = names[: len(names) // 2]
    shut(gated, lower)
    work = products_in_backward(gated)
    assert work == products_in_backward(frozen(eager, lower))
    assert work["attention"] == LAYERS // 2


def test_everything_shut_leaves_what_is_not_compiled(gated: nn.Module) -> None:
    shut(gated, list(oracle.adapted_layers(gated)))
    assert products_in_backward(gated) == {"products": 1, "attention": 0}  # the head's, which runs eagerly


def test_a_gradient_that_somebody_keeps_is_computed(gated: nn.Module, eager: nn.Module) -> None:
    """It does not depend on what lies below, so eager has nothing detached: else there would be none to keep."""
    kept: dict[nn.Module, Tensor] = {}

    def keep(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        inputs[0].retain_grad()
        kept[model] = inputs[0]

    names = list(oracle.adapted_layers(eager))
    shut(gated, names[: len(names) // 2])
    places = [layers_of(model)[LAYERS // 2] for model in (gated, eager)]
    handles = [place.register_forward_pre_hook(keep) for place in places]
    try:
        loss_of(gated)().backward()
        loss_of(eager)().backward()
    finally:
        for handle in handles:
            handle.remove()
    found, wanted = (kept[place].grad for place in places)
    assert bool(wanted.any())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
