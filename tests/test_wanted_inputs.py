"""A backward that has to go down to an input is no secret; a Trainer's hook that makes one for nothing is removed."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import models
import pytest
from lora_modules import batch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from two_layers import Broken, Two, compiled

import skiplora_fx
from skiplora_fx import InputGradientWarning
from skiplora_fx.integrations.checkpointing import remove_needless_hook
from skiplora_fx.integrations.transformers import SkipLoraCallback


def _arguments(directory: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(output_dir=str(directory), use_cpu=True, **options)


def _hooked(model: nn.Module) -> bool:
    """Return whether the embedding's output requires a gradient."""
    embedded: Tensor = model.get_input_embeddings()(models.tokens()["input_ids"])
    return embedded.requires_grad


def _model(reentrant: bool) -> nn.Module:
    """Return what a Trainer makes of a model when it turns checkpointing on."""
    model = models.with_lora(models.llama(1)).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert _hooked(model)
    return model


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
@pytest.mark.parametrize(
    ("kwargs", "stays"), [(None, False), ({"use_reentrant": False}, False), ({"use_reentrant": True}, True)]
)
def test_a_hook_stays_where_checkpoints_need_it(
    name: str, kwargs: dict[str, bool] | None, stays: bool, tmp_path: Path
) -> None:
    model = _model(reentrant=stays)
    remove_needless_hook(model, _arguments(tmp_path, **{name: True, f"{name}_kwargs": kwargs}))
    assert _hooked(model) is stays


def test_a_hook_that_no_trainer_has_set_stays(tmp_path: Path) -> None:
    model = _model(reentrant=False)
    remove_needless_hook(model, _arguments(tmp_path))
    assert _hooked(model)


def _said(model: nn.Module, *inputs: Tensor) -> list[str]:
    compiled(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for x in inputs:
            model(x).sum().backward()
    return [str(warning.message) for warning in caught if issubclass(warning.category, InputGradientWarning)]


def test_an_input_that_wants_a_gradient_is_warned_of_once_for_each_model() -> None:
    (said,) = _said(Two(), batch().requires_grad_(), batch()[:3].requires_grad_())
    assert said.startswith("L['x'] is no parameter and wants a gradient itself")


class OfAPair(Two):
    """Adds up what it is given."""

    def forward(self, pair: list[Tensor]) -> Tensor:
        return super().forward(pair[0] + pair[1])


def test_all_such_inputs_are_named() -> None:
    (said,) = _said(OfAPair(), [batch().requires_grad_(), batch().requires_grad_()])
    assert said.startswith("L['pair'][0] is no parameter")
    assert said.endswith(" Likewise L['pair'][1].")


def test_a_tensor_between_two_graphs_is_none() -> None:
    """A lower adapter asks for its gradient, and stops asking where it is skipped."""
    assert _said(Broken(), batch()) == []


def test_a_trainer_with_checkpointing_has_no_such_input(tmp_path: Path) -> None:
    model = models.with_lora(models.llama(1)).train()
    rows = [{name: value[0] for name, value in models.tokens(1, 12).items()}] * 2
    arguments = _arguments(tmp_path, activation_checkpointing=True, max_steps=1, report_to=[], save_strategy="no")
    callback = SkipLoraCallback(threshold=math.inf, warmup_steps=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train()
    assert not [warning for warning in caught if issubclass(warning.category, InputGradientWarning)]
    assert model.is_gradient_checkpointing
    assert [site.skipped for site in skiplora_fx.sites(model)] == [True, True]
