"""What is no adapter is left alone, and what trains and is left alone is said, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from capture import dynamo_graph
from lora_modules import RANK, WIDE, Around, Linear, batch, peft
from torch import Tensor, nn

from skiplora_fx.passes import find_lora


def rejected(model: nn.Module, *inputs: Any) -> dict[str, str]:
    """Return the reasons by name, of a model in which no site is found."""
    findings = find_lora(dynamo_graph(model, *(inputs or (batch(),))))
    assert findings.sites == ()
    return {rejection.name: rejection.reason for rejection in findings.rejections}


def branch_read_elsewhere(layer: Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    inner = layer.a(x)
    return layer.base(x) + layer.b(inner), inner.sum()


def delta_read_elsewhere(layer: Linear, x: Tensor) -> Tensor:
    delta = layer.delta(x)
    return (layer.base(x) + delta) * delta


def without_grad(layer: Linear, x: Tensor) -> Tensor:
    with torch.no_grad():
        adapted = layer(x)
    return adapted + layer.a(x).sum()


def in_place_onto_what_is_read(layer: Linear, x: Tensor) -> Tensor:
    base = layer.base(x)
    saved = base.sin()
    base += layer.delta(x)
    return base + saved


@pytest.mark.parametrize(
    ("forward", "options", "reason"),
    [
        pytest.param(
            branch_read_elsewhere,
            {},
            "inner, inside the branch, has several readers: linear_2, sum_1",
            id="output of A read elsewhere",
        ),
        pytest.param(
            delta_read_elsewhere,
            {},
            "delta, inside the branch, has several readers: add, mul_1",
            id="output of B read elsewhere",
        ),
        pytest.param(
            lambda layer, x: x + layer.b(F.relu(layer.a(x))),
            {},
            "relu makes the branch non-linear, and h is not a frozen layer of the branch's own input",
            id="non-linearity between",
        ),
        pytest.param(
            lambda layer, x: layer(x),
            {"rank": WIDE},
            f"its inner dimension {WIDE} is not below the larger of its outer ones, {WIDE}: not low-rank",
            id="not low-rank",
        ),
        pytest.param(without_grad, {}, "the branch runs under no_grad, so it has no backward", id="no_grad"),
        pytest.param(
            in_place_onto_what_is_read,
            {},
            "the branch is added in place to a tensor that others read as well",
            id="in place onto what is read",
        ),
        pytest.param(
            lambda layer, x: layer.base(x)[:1] + layer.delta(x), {}, "differ in shape", id="h is one row of several"
        ),
    ],
)
def test_a_near_miss_says_why(forward: Callable[..., Any], options: dict[str, Any], reason: str) -> None:
    found = rejected(Around(forward, **options))
    assert [name for name, said in found.items() if reason in said] == ["layer"]


def test_a_trained_linear_that_joins_nothing_is_named() -> None:
    found = rejected(Around(lambda layer, x: layer.delta(x)))
    assert set(found) == {"layer.a.weight", "layer.b.weight"}
    assert found["layer.a.weight"] == "trains, but its output is not added to anything in this graph"


def test_a_trained_head_beside_the_adapters() -> None:
    findings = find_lora(dynamo_graph(peft(modules_to_save=["second"]), batch()))
    assert [site.name for site in findings.sites] == ["base_model.model.first"]
    head = "base_model.model.second.modules_to_save.default"
    assert {rejection.name for rejection in findings.rejections} == {f"{head}.weight", f"{head}.bias"}


def test_an_adapter_beside_a_layer_that_trains_says_which() -> None:
    model = Around(lambda layer, x: x + layer(x))
    model.layer.base.requires_grad_(True)
    found = rejected(model)
    assert found.pop("layer") == "what it is added to trains itself (at linear), so it adapts no frozen layer"
    assert set(found) == {"layer.base.weight", "layer.base.bias"}


def test_a_layer_whose_bias_trains_under_a_frozen_adapter_is_no_branch_of_the_residual() -> None:
    model = Around(lambda layer, x: x + layer(x), train_a=False, train_b=False)
    model.layer.base.bias.requires_grad_(True)
    (reason,) = rejected(model).values()
    assert reason.endswith("a whole layer, is a part of the sum: not low-rank")


def test_autocast_in_an_exported_forward_is_named() -> None:
    def forward(layer: Linear, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x)

    findings = find_lora(torch.export.export(Around(forward), (batch(),)).module())
    assert findings.sites == ()
    assert {miss.family for miss in findings.rejections} == {"opaque"}
    for miss in findings.rejections:
        assert miss.reason.startswith("trains inside the body of wrap_with_autocast (")


def test_a_join_that_is_rejected_is_no_part_of_the_next_branch() -> None:
    def forward(layer: Linear, x: Tensor) -> Tensor:
        return x.cos() + in_place_onto_what_is_read(layer, x)

    assert set(rejected(Around(forward))) == {"layer"}


def test_a_rejection_names_the_line_of_source() -> None:
    findings = find_lora(dynamo_graph(Around(branch_read_elsewhere), batch()))
    (source,) = {rejection.source for rejection in findings.rejections}
    assert source.startswith(__file__)
    assert source.endswith(", return layer.base(x) + layer.b(inner), inner.sum()")


def test_a_rejection_names_the_node_where_the_search_stopped() -> None:
    findings = find_lora(dynamo_graph(Around(branch_read_elsewhere), batch()))
    assert {rejection.node for rejection in findings.rejections} == {"linear_2"}
    assert findings.describe().startswith("rejected: layer: inner, inside the branch, has several readers")


class SwiGLU(nn.Module):
    """The MLP of a Llama with its residual, trained."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(WIDE, RANK), nn.Linear(WIDE, RANK), nn.Linear(RANK, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


class Attention(nn.Module):
    """One head with a narrow value and a residual, trained."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDE, RANK) for _ in range(3))
        self.out = nn.Linear(RANK, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


class LatentAttention(nn.Module):
    """Query and key through a narrow latent with a norm between, as in MLA, and a residual; trained."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm, self.up = nn.Linear(WIDE, RANK), nn.LayerNorm(RANK), nn.Linear(RANK, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.norm(self.down(x)))


@pytest.mark.parametrize("module", [SwiGLU, Attention, LatentAttention])
def test_what_looks_like_an_adapter_and_is_none(module: type[nn.Module]) -> None:
    model = module()
    named = rejected(model)
    assert named, "all of it trains, so something must be said"


@pytest.mark.parametrize("module", [SwiGLU, Attention, LatentAttention, Linear])
def test_what_is_frozen_is_neither_found_nor_rejected(module: type[nn.Module]) -> None:
    assert rejected(module().requires_grad_(False), batch().requires_grad_()) == {}
