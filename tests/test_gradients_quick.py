"""Gradients equal those of eager ``.detach()`` for any mask, in float64, through all passes but not Inductor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import models
import oracle
import pytest
import torch
from capture import QuickBackend
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

IDS = models.tokens()["input_ids"]


@dataclass(frozen=True)
class Case:
    """A model, and what its forward takes beside ``input_ids``."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]] = dict

    def fresh(self) -> nn.Module:
        torch.manual_seed(0)
        return in_float64(self.build()).train()


def in_float64(model: nn.Module) -> nn.Module:
    """Return ``model`` in float64 throughout: two norms of transformers would go through float32."""
    model = model.double()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ in ("LlamaRMSNorm", "T5LayerNorm"):
                norm = nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon, dtype=torch.float64)
                norm.weight = child.weight
                setattr(parent, name, norm)
    return model


def checkpointed() -> nn.Module:
    model = models.with_lora(models.llama(2), models.ALL_LINEAR)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def checkpointed_without_hook() -> nn.Module:
    model = checkpointed()
    model.get_base_model().disable_input_require_grads()
    return model


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


CASES = {
    "Llama q and v": Case(lambda: models.with_lora(models.llama(3), models.QV)),
    "Llama all linears": Case(lambda: models.with_lora(models.llama(2), models.ALL_LINEAR)),
    "Llama MLP": Case(lambda: models.with_lora(models.llama(2), models.MLP)),
    "Llama upper layer": Case(lambda: models.with_lora(models.llama(3), models.QV, layers_to_transform=[2])),
    "Llama padded, adapter bias": Case(
        lambda: models.with_lora(models.llama(2), models.QV, lora_bias=True),
        lambda: {"attention_mask": models.padded((12, 7))["attention_mask"]},
    ),
    "GPT-2": Case(lambda: without_dropout(models.with_lora(models.gpt2(), ["c_attn", "c_proj"], fan_in_fan_out=True))),
    "BERT with head": Case(
        lambda: without_dropout(models.with_lora(models.bert(), ["query", "value"], task_type="SEQ_CLS"))
    ),
    "T5": Case(
        lambda: models.with_lora(models.t5(), ["q", "v", "wo"]),
        lambda: {"decoder_input_ids": models.tokens(length=7, seed=1)["input_ids"]},
    ),
    "checkpointed": Case(checkpointed),
    "checkpointed without hook": Case(checkpointed_without_hook),
}


def loss_of(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return model(input_ids=IDS, **inputs).logits.square().mean()


def assert_same_gradients(found: oracle.Gradients, expected: oracle.Gradients) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-11 * largest, msg=lambda m, n=name: n + m)


def in_each_scope() -> Iterator[Any]:
    """Yield the cases in each scope. Of the checkpointed ones the longest is in every run in one scope only."""
    for name in CASES:
        for scope in ("adapter", "layer", "input"):
            sweep = name == "checkpointed" and scope != "layer"
            yield pytest.param(name, scope, marks=[pytest.mark.slow] if sweep else [])


@pytest.mark.parametrize(("name", "scope"), list(in_each_scope()))
def test_gradients_equal_those_of_detach(name: str, scope: str) -> None:
    case = CASES[name]
    eager, compiled, inputs = case.fresh(), case.fresh(), case.inputs()
    sites = list(oracle.adapted_layers(eager))
    backend = QuickBackend(scope, held=scope == "input")
    compiled.compile(backend=backend)
    half = len(sites) // 2

    @settings(max_examples=6)
    @given(st.lists(st.booleans(), min_size=len(sites), max_size=len(sites)))
    @example([True] * len(sites))
    @example([False] * len(sites))
    @example([False] * half + [True] * (len(sites) - half))
    def check(opens: list[bool]) -> None:
        mask = dict(zip(sites, opens, strict=True))
        backend.set_mask(mask)
        found = oracle.gradients(compiled, lambda: loss_of(compiled, inputs))
        with oracle.detached(eager, scope, mask):
            expected = oracle.gradients(eager, lambda: loss_of(eager, inputs))
        assert_same_gradients(found, expected)
        assert backend.only.decisions(sites) == mask

    check()
    nothing = scope == "input" and name == "Llama upper layer"  # nothing below wants a gradient, so nothing is skipped
    # Here the embedding's output wants one, so all but the adapters' own products runs, and those give zeros.
    nothing |= scope == "adapter" and name == "checkpointed"
    assert nothing or backend.only.garbage > 0, "nothing is skipped without memory that nobody reads"


@pytest.mark.parametrize("scope", ["adapter", "layer"])
def test_two_chained_adapters_are_gated_each_by_its_own(scope: str) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        model = models.with_lora(models.llama(2), models.QV)
        model.add_adapter("second", model.peft_config["default"])
        model.base_model.set_adapter(["default", "second"])
        models.randomise_b(model)
        return in_float64(model).train()

    eager, compiled = build(), build()
    backend = QuickBackend(scope)
    compiled.compile(backend=backend)
    loss_of(compiled, {})
    sites = backend.only.findings.sites
    layers = oracle.adapted_layers(eager)
    assert len(sites) == 2 * len(layers)

    @settings(max_examples=6)
    @given(st.lists(st.booleans(), min_size=len(sites), max_size=len(sites)))
    def check(opens: list[bool]) -> None:
        backend.only.thresholds.copy_(torch.tensor([0.0 if open else float("inf") for open in opens]))
        found = oracle.gradients(compiled, lambda: loss_of(compiled, {}))
        mask = {(site.name, site.adapter): open for site, open in zip(sites, opens, strict=True)}
        shut = [layers[name].lora_B[adapter] for (name, adapter), open in mask.items() if not open]
        if scope == "layer":
            shut += [layer for name, layer in layers.items() if not (mask[name, "default"] or mask[name, "second"])]
        handles = [module.register_forward_hook(lambda module, inputs, output: output.detach()) for module in shut]
        expected = oracle.gradients(eager, lambda: loss_of(eager, {}))
        for handle in handles:
            handle.remove()
        assert_same_gradients(found, expected)

    check()


def test_ratios_are_those_that_eager_hooks_see() -> None:
    case = CASES["Llama all linears"]
    model = case.fresh()
    expected = {name: ratio for (name, _), ratio in oracle.ratios(model, lambda: loss_of(model, {})).items()}
    backend = QuickBackend()
    model.compile(backend=backend)
    loss_of(model, {})
    names = [site.name for site in backend.only.findings.sites]
    assert dict(zip(names, backend.only.ratios.tolist(), strict=True)) == pytest.approx(expected, rel=1e-6)
