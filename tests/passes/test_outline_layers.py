"""Layers that are alike are one function, and compute what they did."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from typing import Any

import models
import oracle
import pytest
import torch
from aten import trace
from torch import Tensor, fx, nn
from torch._inductor.utils import run_and_get_code
from torch._prims.rng_prims import run_with_rng_state

from skiplora_fx import passes
from skiplora_fx._torch_compat import INVOKE_SUBGRAPH, dynamo_counters
from skiplora_fx.passes import find_layers, outline_layers

X, WEIGHT = torch.randn(4, 4), torch.randn(4, 4)


def layers(count: int = 5, last: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
    """Return ``count`` layers of four products; ``last`` is a constant in the last of them."""

    def forward(x: Tensor, weight: Tensor) -> Tensor:
        for layer in range(count):
            for _ in range(4):
                x = x.mm(weight).sin() * (last if layer == count - 1 else 3.0) + x
            x = x.neg().exp().tanh()
        return x

    return forward


def outlined(gm: fx.GraphModule) -> int:
    """Outline the layers of a graph; return how many calls there are."""
    outline_layers(gm.graph, find_layers(gm.graph))
    gm.recompile()
    return len(gm.graph.find_nodes(op="call_function", target=INVOKE_SUBGRAPH))


def functions(gm: fx.GraphModule) -> int:
    return len([name for name, _ in gm.named_children()])


def test_layers_that_are_alike_are_one_function() -> None:
    run = layers(last=3.0)
    gm = trace(run, X, WEIGHT)
    assert (outlined(gm), functions(gm)) == (5, 1)
    torch.testing.assert_close(gm(X, WEIGHT), run(X, WEIGHT))


def test_a_layer_that_differs_stays_outside() -> None:
    run = layers(last=2.0)
    gm = trace(run, X, WEIGHT)
    assert (outlined(gm), functions(gm)) == (4, 1)
    torch.testing.assert_close(gm(X, WEIGHT), run(X, WEIGHT))


def test_two_layers_stay_as_they_are() -> None:
    assert not find_layers(trace(layers(2, last=3.0), X, WEIGHT).graph)


def test_what_mutates_stays_outside() -> None:
    def mutating(x: Tensor, weight: Tensor, buffer: Tensor) -> Tensor:
        for _ in range(4):
            x = layers(1)(x, weight)
            torch.ops.aten.add_.Tensor(buffer, x)
        return x

    assert not find_layers(trace(mutating, X, WEIGHT, torch.zeros(4, 4)).graph)


@pytest.mark.parametrize("draw", [torch.bernoulli, "run_with_rng_state"])
def test_what_draws_stays_outside_and_what_lies_between_does_not(draw: Any) -> None:
    state = torch.get_rng_state()

    def drawing(x: Tensor, weight: Tensor, state: Tensor) -> Tensor:
        for _ in range(4):
            x = layers(1)(x, weight).sigmoid()
            noise = draw(x) if callable(draw) else run_with_rng_state(state, torch.ops.aten.bernoulli.default, x)
            x = x * noise + x
        return x

    gm = trace(drawing, X, WEIGHT, state)
    assert (outlined(gm), functions(gm)) == (3, 1)  # what comes before the first draw, and behind the last, is no layer
    assert not any(draws(node) for _, function in gm.named_children() for node in function.graph.nodes)
    assert [draws(node) for node in gm.graph.nodes].count(True) == 4
    torch.manual_seed(1)
    found = gm(X, WEIGHT, state)
    torch.manual_seed(1)
    torch.testing.assert_close(found, drawing(X, WEIGHT, state))


def draws(node: fx.Node) -> bool:
    return node.op == "call_function" and ("bernoulli" in str(node.target) or "rng_state" in str(node.target))


@pytest.mark.parametrize(("constant", "calls"), [(True, 5), (False, 0)])
def test_what_may_be_written_in_place_stays_outside_unless_into_a_constant(constant: bool, calls: int) -> None:
    def scattering(x: Tensor, weight: Tensor) -> Tensor:
        for _ in range(5):
            zeros = torch.ops.aten.full([4, 4], 0.0) if constant else x.neg()
            x = layers(1)(torch.ops.aten.slice_scatter(zeros, x[:2], 0, 1, 3), weight)
        return x

    gm = trace(scattering, X, WEIGHT)
    assert outlined(gm) == calls
    torch.testing.assert_close(gm(X, WEIGHT), scattering(X, WEIGHT))


@pytest.mark.parametrize("name", ["find_layers", "outline_layers"])
def test_a_graph_on_which_it_fails_is_as_it_was(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done, failed = getattr(passes, name), []

    def failing_at_its_end(*args: Any) -> None:
        done(*args)
        raise ZeroDivisionError

    monkeypatch.setattr(passes, name, failing_at_its_end)
    run = layers(last=3.0)
    gm = trace(run, X, WEIGHT)
    before = [node.target for node in gm.graph.nodes]
    passes.Pipeline("adapter", on_failure=lambda *failure: failed.append(failure)).outline(gm.graph)
    gm.recompile()
    assert [(name, type(error)) for name, error in failed] == [("outline_layers", ZeroDivisionError)]
    assert ([node.target for node in gm.graph.nodes], functions(gm)) == (before, 0)
    torch.testing.assert_close(gm(X, WEIGHT), run(X, WEIGHT))


class TestThroughInductor:
    """PEFT Llamas of five layers."""

    @pytest.fixture(autouse=True)
    def _fresh(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    @pytest.mark.parametrize(
        "scope", ["adapter", *(pytest.param(s, marks=pytest.mark.slow) for s in ("layer", "input"))]
    )
    def test_gradients_are_those_without(self, scope: str) -> None:
        decision = "previous" if scope == "input" else "current"
        options = {"scope": scope, "decision": decision, "threshold": {"*layers.2*": math.inf, "*": 0.0}}
        code, found = gradients(outline_layers=True, **options)
        without, wanted = gradients(**options)
        assert calls(without) == 0
        assert calls(code) >= 3
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("model", "tolerance"),
        [
            pytest.param({"targets": models.ALL_LINEAR}, 1e-4, id="all linears"),
            pytest.param({"dtype": torch.bfloat16}, 5e-2, id="bfloat16"),
        ],
    )
    def test_other_models(self, model: dict[str, Any], tolerance: float) -> None:
        options = {"scope": "layer", "threshold": {"*layers.2*": math.inf, "*": 0.0}}
        code, found = gradients(**model, outline_layers=True, **options)
        _, wanted = gradients(**model, **options)
        assert calls(code) >= 3
        for name, want in wanted.items():
            assert want is not None
            torch.testing.assert_close(found[name], want, rtol=0, atol=tolerance * max(float(want.abs().max()), 1e-2))

    @pytest.mark.slow
    def test_layers_whose_activations_are_checkpointed(self) -> None:
        """In the forward attention saves the generator's state, though it draws nothing, and stays outside."""
        shut = "*layers.2*"
        code, found = gradients(checkpointing=True, outline_layers=True, threshold={shut: math.inf, "*": 0.0})
        assert [calls([text]) for text in code if calls([text])] == [4, 4]  # of the forward, and of the backward
        model = lora_llama(checkpointing=True)
        mask = {name: not fnmatch(name, shut) for name in oracle.adapted_layers(model)}
        assert list(mask.values()).count(False) == 2
        with oracle.detached(model, "adapter", mask):
            wanted = oracle.gradients(model, lambda: model(**models.tokens()).loss)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)

    @pytest.mark.slow
    def test_a_compile_from_caches_has_them_too(self) -> None:
        code, found = gradients(outline_layers=True, threshold=0.0)
        hits = dynamo_counters["aot_autograd"]["autograd_cache_hit"]
        again, from_cache = gradients(outline_layers=True, threshold=0.0)
        assert calls(again) == calls(code) >= 3
        assert dynamo_counters["aot_autograd"]["autograd_cache_hit"] > hits
        torch.testing.assert_close(from_cache, found, rtol=0, atol=0)

    @pytest.mark.slow
    def test_random_numbers_differ_from_layer_to_layer_as_without(self) -> None:
        code, found = gradients(dropout=0.5, threshold=0.0, outline_layers=True)
        _, wanted = gradients(dropout=0.5, threshold=0.0)
        assert calls(code) >= 3
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def calls(code: list[str]) -> int:
    return sum(len(re.findall(r"= \w*skiplora_layer_\d+\(", text)) for text in code)


def gradients(
    targets: Any = models.QV,
    dtype: torch.dtype = torch.float32,
    dropout: float = 0.0,
    checkpointing: bool = False,
    **options: Any,
) -> tuple[list[str], Mapping[str, Tensor | None]]:
    """Compile and run one step; return what Inductor wrote, and the gradients."""
    torch._dynamo.reset()
    model = lora_llama(targets, dtype, dropout, checkpointing)
    batch = models.tokens()
    model.compile(backend="skiplora", options={"warmup_steps": 0, "probe_every": 0, "strict": True, **options})

    def step() -> None:
        torch.manual_seed(1)
        model(**batch).loss.backward()

    _, code = run_and_get_code(step)
    return code, {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def lora_llama(
    targets: Any = models.QV, dtype: torch.dtype = torch.float32, dropout: float = 0.0, checkpointing: bool = False
) -> nn.Module:
    torch.manual_seed(0)
    base = models.llama(5)
    if checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return models.with_lora(base, targets, dropout=dropout).to(dtype).train()
