"""The skipped work is really not executed: products counted by the profiler while the backward runs."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import models
import oracle
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import skiplora_fx

SHARES_COMPILED = True
LAYERS, SCOPES = 4, ("adapter", "layer")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")],
    ),
]
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkl::_mkl_linear")
ATTENTION = tuple(
    f"aten::_scaled_dot_product_{kernel}_backward"
    for kernel in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
)


def products_in_backward(model: nn.Module) -> dict[str, int]:
    """Return how many matrix products, and how many attention backwards, one backward runs."""
    model.zero_grad(set_to_none=True)
    device = next(model.parameters()).device
    loss = model(**{name: value.to(device) for name, value in models.tokens().items()}).loss
    with profile(activities=[ProfilerActivity.CPU]) as run:
        loss.backward()
    counts = {event.key: event.count for event in run.key_averages()}
    return {
        "products": sum(counts.get(name, 0) for name in PRODUCTS),
        "attention": sum(counts.get(name, 0) for name in ATTENTION),
    }


def frozen(model: nn.Module, names: list[str]) -> nn.Module:
    """Return a copy compiled by Inductor, the adapters called ``names`` frozen."""
    copied = copy.deepcopy(model)
    for name, layer in oracle.adapted_layers(copied).items():
        if name in names:
            layer.requires_grad_(False)
    copied.compile(backend="inductor")
    products_in_backward(copied)
    return copied


@pytest.fixture(scope="module", params=DEVICES)
def eager(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return models.with_lora(models.llama(LAYERS)).to(request.param).train()


@pytest.fixture(
    scope="module",
    # Its tests run where it is: another worker would compile it again.
    params=[pytest.param(scope, marks=pytest.mark.xdist_group(f"work not done: {scope}")) for scope in SCOPES],
)
def gated(request: pytest.FixtureRequest, eager: nn.Module) -> Iterator[nn.Module]:
    model = copy.deepcopy(eager)
    compile_gated(model, request.param)
    yield model
    torch.compiler.reset()


def compile_gated(model: nn.Module, scope: str) -> None:
    options = {"scope": scope, "threshold": 0.0, "warmup_steps": 0, "probe_every": 0}
    model.compile(backend="skiplora", options=options)
    products_in_backward(model)


def shut(model: nn.Module, names: list[str]) -> None:
    for site in skiplora_fx.sites(model):
        skiplora_fx.set_threshold(model, math.inf if site.name in names else 0.0, site.name)


def test_nothing_skipped_does_the_same_work_as_inductor(gated: nn.Module, eager: nn.Module) -> None:
    shut(gated, [])
    assert products_in_backward(gated) == products_in_backward(frozen(eager, []))


def test_lower_half_shut_does_the_same_work_as_lower_half_frozen(gated: nn.Module, eager: nn.Module) -> None:
    names = list(oracle.adapted_layers(eager))
    lower = names[: len(names) // 2]
    shut(gated, lower)
    work = products_in_backward(gated)
    assert work == products_in_backward(frozen(eager, lower))
    assert work["attention"] == LAYERS // 2


def test_everything_shut_runs_no_product(gated: nn.Module, eager: nn.Module) -> None:
    shut(gated, list(oracle.adapted_layers(eager)))
    assert products_in_backward(gated) == {"products": 0, "attention": 0}


def test_what_checkpointing_repeats_for_a_shut_half_is_not_executed_either() -> None:
    torch.manual_seed(0)
    model = models.with_lora(models.llama(LAYERS)).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.get_base_model().disable_input_require_grads()
    names = list(oracle.adapted_layers(model))
    lower, reference = names[: len(names) // 2], copy.deepcopy(model)
    compile_gated(model, "adapter")
    everything = products_in_backward(model)
    shut(model, lower)
    work = products_in_backward(model)
    assert work == products_in_backward(frozen(reference, lower))
    assert (everything["attention"], work["attention"]) == (LAYERS, LAYERS // 2)
    shut(model, names)
    assert products_in_backward(model) == {"products": 0, "attention": 0}
    torch.compiler.reset()
