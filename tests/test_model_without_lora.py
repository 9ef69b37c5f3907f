"""A model in which nothing can be gated runs as under Inductor, and says so once."""

from __future__ import annotations

import copy
import warnings

import models
import pytest
import torch
from peft import IA3Config, get_peft_model
from torch import nn

from skiplora_fx import InputGradientWarning, NoLoRAWarning


def gradients(model: nn.Module, backend: str) -> dict[str, torch.Tensor]:
    model.compile(backend=backend)
    model(**models.tokens()).loss.backward()
    trained = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: grad.clone() for name, grad in trained.items() if grad is not None}


def test_same_result_as_inductor_and_one_warning() -> None:
    plain = models.llama(1).train()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = copy.deepcopy(plain)
        found = gradients(ours, "skiplora")
        ours(**models.tokens(3, 8)).loss.backward()  # another shape is another graph, of the same model
    assert [warning.category for warning in caught if issubclass(warning.category, NoLoRAWarning)] == [NoLoRAWarning]
    wanted = gradients(copy.deepcopy(plain), "inductor")
    assert found.keys() == wanted.keys()
    for name, want in wanted.items():
        torch.testing.assert_close(found[name], want, rtol=0, atol=0)


def test_warning_names_what_trains_and_why_it_is_not_gated() -> None:
    model = get_peft_model(models.llama(1), IA3Config(target_modules=["v_proj"], feedforward_modules=[])).train()
    with pytest.warns(NoLoRAWarning, match=r"v_proj.*multiplies an activation \(at .*\), so it adds no Δh"):
        gradients(model, "skiplora")


def test_no_grad_is_plain_inductor() -> None:
    model = models.with_lora(models.llama(1)).eval()
    wanted = model(**models.tokens()).logits
    model.compile(backend="skiplora", options={"threshold": float("inf"), "warmup_steps": 0})
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", NoLoRAWarning)
        torch.testing.assert_close(model(**models.tokens()).logits, wanted.detach(), rtol=1e-4, atol=1e-5)


def test_graph_in_which_nothing_trains_does_not_warn() -> None:
    """Checkpointing as transformers switches it on leaves the embedding to a graph of its own, of which it warns."""
    model = models.with_lora(models.llama(1)).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gradients(model, "skiplora")
    ours = (InputGradientWarning, NoLoRAWarning)
    assert [found.category for found in caught if issubclass(found.category, ours)] == [InputGradientWarning]
