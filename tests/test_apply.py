"""``apply`` on every kind of traced graph: same outputs, gradients of eager ``.detach()``, and work left out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import oracle
import pytest
import torch
from aten import CountCalls
from lora_modules import RANK, WIDE, Linear, Plain, batch, peft
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import skiplora_fx
from skiplora_fx import NoLoRAWarning

aten = torch.ops.aten
AT_ONCE = {"warmup_steps": 0, "probe_every": 0}
LAYERS = 3


class Stack(nn.Module):
    """Residual layers with an adapter each, in float64; ``shut`` detaches as gates of ``scope`` do."""

    def __init__(self, scope: str = "adapter", layers: int = LAYERS) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear() for _ in range(layers))
        self.scope = scope
        self.shut: tuple[int, ...] = ()
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            h, delta = layer.base(x), layer.delta(x)
            if number in self.shut:
                h, delta = (h if self.scope == "adapter" else h.detach()), delta.detach()
            x = x + torch.tanh(h + delta)
        return x


def lifted(model: nn.Module, x: Tensor) -> fx.GraphModule:
    return make_fx(lambda params, x: functional_call(model, params, (x,)))(dict(model.named_parameters()), x)


GRAPHS: dict[str, Callable[[nn.Module, Tensor, dict[str, Any]], Callable[[Tensor], Any]]] = {
    "symbolic_trace": lambda m, x, o: skiplora_fx.apply(fx.symbolic_trace(m), x, **o),
    "exported program": lambda m, x, o: skiplora_fx.apply(torch.export.export(m, (x,)), **o),
    "exported module": lambda m, x, o: skiplora_fx.apply(torch.export.export(m, (x,)).module(), **o),
    "make_fx": lambda m, x, o: skiplora_fx.apply(make_fx(lambda x: m(x))(x), **o),
    "make_fx, parameters lifted": lambda m, x, o: WithParameters(
        skiplora_fx.apply(lifted(m, x), dict(m.named_parameters()), x, **o), m
    ),
    "module": lambda m, x, o: skiplora_fx.apply(m, x, **o),
}


class WithParameters(nn.Module):
    """Hands a graph the parameters that it takes as inputs."""

    def __init__(self, gated: fx.GraphModule, model: nn.Module) -> None:
        super().__init__()
        self.gated, self.parameters_of = gated, [model]

    def forward(self, x: Tensor) -> Tensor:
        return self.gated(dict(self.parameters_of[0].named_parameters()), x)


def result(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


def gradients(run: Callable[[Tensor], Any], model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Return the output and the gradients of all that trains, None where there is none, and of ``x``."""
    model.zero_grad(set_to_none=True)
    x.grad = None
    out = result(run(x))
    loss = out.sin().sum()
    if loss.requires_grad:
        loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return out.detach(), {**found, "x": x.grad}


def set_mask(gated: nn.Module, shut: tuple[int, ...]) -> None:
    sites = skiplora_fx.sites(gated)
    assert len(sites) == LAYERS
    for number, site in enumerate(sites):
        skiplora_fx.set_threshold(gated, math.inf if number in shut else 0.0, sites=site.name)


MASKS = [shut for count in range(LAYERS + 1) for shut in itertools.combinations(range(LAYERS), count)]


@pytest.mark.parametrize("scope", ["adapter", "layer"])
@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.parametrize("wants_grad", [False, True], ids=["input", "input that wants a gradient"])
def test_gradients_under_every_mask(kind: str, scope: str, wants_grad: bool) -> None:
    model = Stack(scope)
    x = batch().double().requires_grad_(wants_grad)
    gated = GRAPHS[kind](model, batch().double(), {"scope": scope, "threshold": 0.0, **AT_ONCE})
    for shut in MASKS:
        set_mask(gated, shut)
        found = gradients(gated, model, x)
        model.shut = shut
        wanted = gradients(model, model, x)
        model.shut = ()
        torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=0)
        skipped = {f"layers.{number}.{half}.weight" for number in shut for half in "ab"}
        assert {name for name, grad in found[1].items() if grad is None and name != "x"} >= skipped
        for name, grad in wanted[1].items():
            other = found[1][name]
            if grad is None or other is None:
                assert grad is other, name
            else:
                torch.testing.assert_close(other, grad)


def products(model: nn.Module, x: Tensor, backward: bool = True) -> int:
    """Return how many matrix products a backward, or a forward, runs."""
    model.zero_grad(set_to_none=True)
    with CountCalls(aten.mm.default, aten.addmm.default) as forward:
        out = result(model(x)).sum()
    with CountCalls(aten.mm.default, aten.addmm.default) as counted:
        if out.requires_grad:
            out.backward()
    return counted.calls if backward else forward.calls


@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.parametrize("shut", MASKS, ids=str)
def test_what_is_skipped_is_not_run(kind: str, shut: tuple[int, ...]) -> None:
    model, x = Stack(), batch().double()
    gated = GRAPHS[kind](model, x, {"threshold": 0.0, **AT_ONCE})
    set_mask(gated, shut)
    assert products(gated, x, backward=False) == products(model, x, backward=False)
    lowest = min(set(range(LAYERS)) - set(shut), default=LAYERS)
    # The lowest open adapter's product with A gives the gradient of its input as well, which nobody needs and which
    # nobody could know in the forward: A has to be told whether its input wants one. In the first layer it is known.
    known = lowest in (0, LAYERS)
    found = products(gated, x)
    model.shut = shut
    assert found == products(model, x) + (0 if known else 1)


def test_nothing_is_run_if_all_is_shut() -> None:
    model, x = Stack(), batch().double()
    gated = skiplora_fx.apply(torch.export.export(model, (x,)), threshold=math.inf, **AT_ONCE)
    out = gated(x)
    with CountCalls(aten.mm.default, aten.tanh_backward.default) as counted:
        out.sin().sum().backward()
    assert counted.calls == 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_peft_model() -> None:
    model, x = peft(targets=("first", "second")).double(), batch().double()
    gated = skiplora_fx.apply(torch.export.export(model, (x,)), threshold=0.0, **AT_ONCE)
    names = [site.name for site in skiplora_fx.sites(gated)]
    assert names == list(oracle.adapted_layers(model))
    for shut in itertools.product([False, True], repeat=2):
        mask: Mapping[str, bool] = {name: not closed for name, closed in zip(names, shut, strict=True)}
        for name in names:
            skiplora_fx.set_threshold(gated, 0.0 if mask[name] else math.inf, sites=name)
        found = oracle.gradients(model, lambda: gated(x).sin().sum())
        with oracle.detached(model, "adapter", mask):
            torch.testing.assert_close(found, oracle.gradients(model, lambda: model(x).sin().sum()))


def test_ratios_are_those_of_the_norms() -> None:
    model, x = peft().double(), batch().double()
    gated = skiplora_fx.apply(model, x, threshold=0.0, **AT_ONCE)
    gated(x).sum().backward()
    (site,) = skiplora_fx.sites(gated)
    assert site.ratio == pytest.approx(oracle.ratios(model, lambda: model(x))[site.name, "default"], rel=1e-6)
    assert (site.rank, site.backwards, site.skipped) == (RANK, 1, False)
    assert "base_model.model.first" in skiplora_fx.report(gated)


@pytest.mark.parametrize("kind", ["symbolic_trace", "exported module", "make_fx"])
def test_the_graph_that_was_given_is_not_changed(kind: str) -> None:
    model, x = Stack(), batch().double()
    traced = {
        "symbolic_trace": lambda: fx.symbolic_trace(model),
        "exported module": lambda: torch.export.export(model, (x,)).module(),
        "make_fx": lambda: make_fx(lambda x: model(x))(x),
    }[kind]()
    before, modules, state = str(traced.graph), dict(traced.named_modules()), set(traced.state_dict())
    gated = skiplora_fx.apply(traced, x, threshold=0.1)
    assert str(traced.graph) == before
    assert dict(traced.named_modules()) == modules
    theirs = {id(parameter) for parameter in traced.parameters()}
    assert {id(parameter) for parameter in gated.parameters()} <= theirs
    assert set(gated.state_dict()) <= state


def test_buffers_and_parameters_lifted_together() -> None:
    class VeRA(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(WIDE, WIDE).requires_grad_(False)
            self.register_buffer("a", torch.randn(RANK, WIDE))
            self.register_buffer("b", torch.randn(WIDE, RANK))
            self.scale = nn.Parameter(torch.randn(WIDE))

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.scale * (x @ self.a.T @ self.b.T)

    model, x = VeRA(), batch()
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    traced = make_fx(lambda state, x: functional_call(model, state, (x,)))(state, x)
    gated = skiplora_fx.apply(traced, state, x, threshold=math.inf, **AT_ONCE)
    gated(state, x).sum().backward()
    assert model.scale.grad is None
    (site,) = skiplora_fx.sites(gated)
    assert (site.name, site.skipped) == ("", True)


def test_convolutions_and_embeddings_that_symbolic_trace_leaves_whole() -> None:
    class Adapted(nn.Module):
        def __init__(self, base: nn.Module, a: nn.Module, b: nn.Module) -> None:
            super().__init__()
            self.base, self.a, self.b = base.requires_grad_(False), a, b

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.b(self.a(x))

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = Adapted(nn.Embedding(20, 8), nn.Embedding(20, 2), nn.Linear(2, 8, bias=False))
            down, up = nn.Conv1d(8, 2, 3, padding=1, bias=False), nn.Conv1d(2, 8, 1, bias=False)
            self.conv = Adapted(nn.Conv1d(8, 8, 3, padding=1), down, up)

        def forward(self, ids: Tensor) -> Tensor:
            return self.conv(self.words(ids).transpose(1, 2).tanh())

    model, ids = Both(), torch.randint(0, 20, (2, 5))
    gated = skiplora_fx.apply(fx.symbolic_trace(model), ids, threshold=0.0, **AT_ONCE)
    torch.testing.assert_close(gated(ids), model(ids), rtol=0, atol=0)
    assert [site.name for site in skiplora_fx.sites(gated)] == ["words", "conv"]
    skiplora_fx.set_threshold(gated, math.inf, sites="conv")
    gated(ids).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"words.a.weight", "words.b.weight"}


def gated_linear(model: nn.Module | None = None, **options: Any) -> tuple[nn.Module, fx.GraphModule]:
    model = model or Linear()
    return model, skiplora_fx.apply(torch.export.export(model, (batch(),)), **{**AT_ONCE, **options})


def step(gated: nn.Module, x: Tensor | None = None) -> skiplora_fx.SiteState:
    result(gated(batch() if x is None else x)).sum().backward()
    return skiplora_fx.sites(gated)[0]


def test_chained_adapters() -> None:
    model = peft()
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])
    gated = skiplora_fx.apply(model, batch(), threshold=math.inf, scope="layer", **AT_ONCE)
    assert [site.adapter for site in skiplora_fx.sites(gated)] == ["default", "second"]
    gated(batch()).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_adapter_that_is_used_twice_is_one_site() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Linear()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x).tanh())

    model, x = Twice(), batch()
    gated = skiplora_fx.apply(model, x, threshold=0.0, **AT_ONCE)
    gated(x).sum().backward()
    (site,) = {site.name: site for site in skiplora_fx.sites(gated)}.values()
    assert (site.name, site.backwards) == ("layer", 1)


def test_a_length_that_varies() -> None:
    model = Stack()
    program = torch.export.export(
        model, (batch(4).double(),), dynamic_shapes=({0: torch.export.Dim("rows", min=2, max=64)},)
    )
    gated = skiplora_fx.apply(program, threshold=math.inf, **AT_ONCE)
    for rows in (2, 7, 33):
        x = batch(rows).double()
        torch.testing.assert_close(gated(x), model(x), rtol=0, atol=0)


def test_keyword_inputs_and_several_outputs() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Linear()

        def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, Any]:
            out = self.layer(x) * scale
            return {"out": out, "pair": (out.sum(), x)}

    model, x = Named(), batch()
    scale = torch.ones(WIDE)
    gated = skiplora_fx.apply(torch.export.export(model, (x,), {"scale": scale}), threshold=math.inf, **AT_ONCE)
    found = gated(x, scale=scale)
    torch.testing.assert_close(found, model(x, scale=scale), rtol=0, atol=0)
    found["pair"][0].backward()
    assert skiplora_fx.sites(gated)[0].skipped


def test_under_activation_checkpointing() -> None:
    model, gated = gated_linear(threshold=math.inf)
    x = batch().requires_grad_()
    checkpoint(gated, x, use_reentrant=False).sum().backward()
    assert model.a.weight.grad is None
    assert x.grad is not None
    assert skiplora_fx.sites(gated)[0].backwards == 1


def test_a_graph_is_not_gated_twice() -> None:
    _, gated = gated_linear(threshold=0.0)
    with pytest.warns(NoLoRAWarning, match="a gate of skiplora"):
        again = skiplora_fx.apply(gated, batch())
    assert again(batch()).shape == (3, WIDE)


def test_a_trained_head_below_is_reached_whatever_is_shut() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layer = nn.Linear(WIDE, WIDE), Linear()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.embed(x).tanh())

    model, x = Head(), batch()
    gated = skiplora_fx.apply(model, x, threshold=math.inf, **AT_ONCE)
    gated(x).sum().backward()
    found = model.embed.weight.grad.clone()
    model.zero_grad()
    (model.layer.base(h := model.embed(x).tanh()) + model.layer.delta(h).detach()).sum().backward()
    torch.testing.assert_close(found, model.embed.weight.grad)


def test_plain_modules_share_nothing_but_parameters() -> None:
    model = Plain()
    with pytest.warns(NoLoRAWarning, match="Trained, but not gated"):
        gated = skiplora_fx.apply(model, batch())
    torch.testing.assert_close(gated(x := batch()), model(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_result_may_be_converted(dtype: torch.dtype) -> None:
    gated = skiplora_fx.apply(fx.symbolic_trace(Linear()), batch(), threshold=math.inf, **AT_ONCE).to(dtype)
    assert step(gated, batch().to(dtype)).skipped


class Activated(Linear):
    """A leaf of ``symbolic_trace`` inside the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def delta(self, x: Tensor) -> Tensor:
        return self.b(self.act(self.a(x)))


@pytest.mark.parametrize("kind", GRAPHS)
def test_a_module_inside_the_branch(kind: str) -> None:
    model, x = Activated(), batch()
    gated = GRAPHS[kind](model, x, {"threshold": math.inf, **AT_ONCE})
    assert step(gated, x).skipped


def test_a_parameter_that_is_lifted_and_no_sites_gets_its_gradient() -> None:
    class Head(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(WIDE, WIDE).double()

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.embed(x))

    model, x = Head(), batch().double()
    gated = GRAPHS["make_fx, parameters lifted"](model, x, {"threshold": math.inf, **AT_ONCE})
    _, found = gradients(gated, model, x)
    model.shut = tuple(range(LAYERS))
    _, wanted = gradients(model, model, x)
    torch.testing.assert_close(found["embed.weight"], wanted["embed.weight"])
