"""Adapters that share an input are one product, and gradients stay those of eager ``.detach()``."""

from __future__ import annotations

import itertools
from typing import Any

import models
import oracle
import pytest
import torch
from aten import CountCalls
from capture import QuickBackend, dynamo_call
from torch import Tensor, fx, nn

from skiplora_fx.passes import find_lora
from skiplora_fx.passes.siblings import find_siblings

WIDE = 16


class Adapter(nn.Module):
    """``h + B(A(x)) * 2`` beside a frozen linear."""

    def __init__(self, rank: int = 4, bias: bool = False, dropout: float = 0.0, train_a: bool = True) -> None:
        super().__init__()
        self.base = nn.Linear(WIDE, WIDE).requires_grad_(False)
        self.a = nn.Linear(WIDE, rank, bias=bias).requires_grad_(train_a)
        self.b = nn.Linear(rank, WIDE, bias=False)
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(self.drop(x).to(self.a.weight.dtype))) * 2.0


class Two(nn.Module):
    """Two adapted layers that read one input, or what ``between`` makes of it for the second."""

    def __init__(self, one: Any = None, other: Any = None, between: Any = None) -> None:
        super().__init__()
        self.one, self.other = Adapter(**(one or {})), Adapter(**(other or {}))
        self.between = between or (lambda x: x)

    def forward(self, x: Tensor) -> Tensor:
        x = x.sin()
        one = self.one(x).sin()
        return one + self.other(self.between(x)).cos()


class InPlace(Two):
    """The second adapter's A is written into."""

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.one, self.other
        return one(x) + (other.base(x) + other.b(other.a(x).mul_(2.0)))


class Cast(Two):
    """The second adapter runs under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        with torch.autocast("cpu", torch.bfloat16):
            return one + self.other(x)


def x() -> Tensor:
    return torch.randn(3, WIDE, requires_grad=True)


def groups(model: nn.Module) -> list[int]:
    call = dynamo_call(model.train(), x())
    sites = find_lora(call.gm).sites
    assert len(sites) == 2
    return [len(group.linears) for group in find_siblings(call.gm, sites)]


@pytest.mark.parametrize(
    "model",
    [
        lambda: Two(),
        lambda: Two({"rank": 2}, {"rank": 4}),
        lambda: Two({"bias": True}, {"bias": True}),
        lambda: Two({"train_a": False}, {"train_a": False}),
        lambda: _doubled("one", "other"),  # through casts that are alike
    ],
)
def test_siblings_are_found(model: Any) -> None:
    assert groups(model()) == [2]


def _doubled(*names: str) -> Two:
    """Return a pair of which some adapters are float64, and cast their input."""
    model = Two()
    for name in names:
        adapter = getattr(model, name)
        adapter.a.double()
        adapter.b.double()
    return model


@pytest.mark.parametrize(
    "model",
    [
        lambda: Two(between=lambda x: x * 2),
        lambda: Two(between=lambda x: x.mul_(2)),
        lambda: Two({"dropout": 0.5}, {"dropout": 0.5}),
        lambda: Two({"bias": True}),
        lambda: Two({"train_a": False}),
        lambda: _doubled("other"),
        InPlace,
        Cast,
    ],
)
def test_what_differs_is_left_alone(model: Any) -> None:
    assert groups(model()) == []


PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


def products(graph: fx.Graph) -> int:
    return sum(node.target in PRODUCTS for node in graph.nodes)


def test_one_product_for_a_one_for_its_gradient_and_one_for_the_input() -> None:
    found = {}
    for merges in (False, True):
        torch._dynamo.reset()
        backend = QuickBackend(merges=merges)
        torch.compile(Two(), backend=backend)(x()).sum().backward()
        stages = backend.only.stages
        found[merges] = products(stages["joint", "joint"]), products(stages["backward", "backward"])
    # of A, dA and dX one each is saved
    assert (found[False][0] - found[True][0], found[False][1] - found[True][1]) == (3, 2)


def products_run(merges: bool, rank: int) -> dict[tuple[bool, bool], int]:
    """Return how many products the backward of a pair makes under each mask."""
    torch._dynamo.reset()
    backend = QuickBackend(merges=merges)
    compiled = torch.compile(Two({"rank": rank}, {"rank": rank}), backend=backend)
    found = {}
    for mask in itertools.product((True, False), repeat=2):
        backend.set_mask(dict(zip(("one", "other"), mask, strict=True)))
        loss = compiled(x()).sum()
        with CountCalls(*PRODUCTS) as counted:
            loss.backward()
        found[mask] = counted.calls
    return found


def test_the_merged_products_are_left_out_only_where_all_are_shut() -> None:
    # Of each adapter dB and dΔh · B, of each or of both dA and dX; of the frozen layers two in any case.
    rank = 12  # of a merged rank up to half the width dX is no region of its own: it costs less than a branch
    alone, merged = products_run(merges=False, rank=rank), products_run(merges=True, rank=rank)
    assert alone == {(True, True): 10, (True, False): 6, (False, True): 6, (False, False): 2}
    assert merged == {(True, True): 8, (True, False): 6, (False, True): 6, (False, False): 2}


def _llama() -> Any:
    torch.manual_seed(0)
    rank = {"k_proj": 2, "up_proj": 3}
    model = models.with_lora(models.llama(2), models.ALL_LINEAR, rank_pattern=rank, use_rslora=True)
    return model.double().train()


def _masks(names: list[str]) -> list[dict[str, bool]]:
    """Return every mask of one layer's q, k and v, its gate and up as q and k; the rest is open, and then shut."""
    layer = [f"base_model.model.model.layers.1.{part}" for part in PARTS]
    return [
        {**dict.fromkeys(names, rest), **dict(zip(layer, (*opens, *opens[:2]), strict=True))}
        for rest in (True, False)
        for opens in itertools.product((True, False), repeat=3)
    ]


PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")


@pytest.mark.parametrize(
    ("scope", "checkpointed"),
    [
        ("adapter", False),
        ("layer", False),
        ("adapter", True),
        pytest.param("layer", True, marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_of_eager_detach(scope: str, checkpointed: bool) -> None:
    model, batch = _llama(), models.tokens()
    if checkpointed:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    names = list(oracle.adapted_layers(model))
    backend = QuickBackend(scope, merges=True)
    compiled = torch.compile(model, backend=backend)
    for mask in _masks(names):
        backend.set_mask(mask)
        found = oracle.gradients(model, lambda: compiled(**batch).loss)
        with oracle.detached(model, scope, mask):
            wanted = oracle.gradients(model, lambda: model(**batch).loss)
        torch.testing.assert_close(found, wanted)
    assert set(mask) == set(names)
    assert sum(name == "merge_siblings" for name in backend.passes)


def test_an_adapter_that_the_loss_does_not_need_has_zeros() -> None:
    class Unused(Two):
        def forward(self, x: Tensor) -> Any:
            return self.one(x), self.other(x)

    model = Unused()
    compiled = torch.compile(model, backend=QuickBackend(merges=True))
    compiled(x())[0].sum().backward()
    assert bool(model.one.a.weight.grad.any())
    assert not bool(model.other.a.weight.grad.any())
