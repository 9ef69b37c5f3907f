"""A model of the Hub or of a folder with fresh LoRA adapters, as far as possible without its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError, reason_of
from .model_tasks import Task, task_of


@dataclass(frozen=True)
class LoRAModel:
    """What :func:`build_lora_model` builds.

    Attributes:
        source: id on the Hub, or a local folder; of it only ``config.json`` is read.
        rank: r.
        targets: names of the modules to adapt, as PEFT's ``target_modules``; ``("all-linear",)`` for all; empty for
            those that PEFT itself knows for the type of model.
        batch: number of sequences, or images.
        length: tokens in each sequence.
        dtype: of the frozen weights, such as ``"bfloat16"``; the adapters are float32.
        device: ``"meta"``, on which nothing is stored or computed, or one with memory.
        layers: number of layers, or None for the model's own.
    """

    source: str
    rank: int = 16
    targets: Sequence[str] = ()
    batch: int = 1
    length: int = 512
    dtype: str = "bfloat16"
    device: str = "meta"
    layers: int | None = None


def build_lora_model(wanted: LoRAModel) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build a model from its config, for the task that the config is of, adapt it, and make a batch for it.

    Returns:
        The model in training mode, and what it is called with, as in :class:`~.model_tasks.Task`.

    Raises:
        UsageError: transformers or peft is missing; there is no such dtype, device or config, or none of a task that
            is known; transformers cannot build it; PEFT finds no such modules.
    """
    try:
        import peft  # noqa: F401 (whether it is there)
        import transformers  # noqa: F401 (likewise)
    except ImportError as error:
        raise UsageError(
            f"{error.name} is not installed, and a model cannot be built without it: "
            'pip install "skiplora-fx[examples]"'
        ) from error
    dtype, device = _dtype(wanted.dtype), _device(wanted.device)
    config = _config(wanted)
    task = task_of(config, wanted.source)
    with device:
        model = _adapted(_built(task, config, dtype, wanted.source), wanted)
        batch = task.batch(config, wanted.batch, wanted.length, dtype)
    return model.train(), batch


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UsageError(f"dtype {name!r} is none that weights can have; float32, bfloat16 or float16 is meant")
    return dtype


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter where torch is built without it
        raise UsageError(
            f"device {name!r} cannot be used ({reason_of(error)}). Give meta, cpu, or cuda where there is one."
        ) from error


def _config(wanted: LoRAModel) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(wanted.source)
    except Exception as error:
        raise UsageError(
            f"no model config can be read from {wanted.source!r} ({reason_of(error)}). Give an id on the Hub, or a "
            "folder with a config.json that names its model_type."
        ) from error
    config.use_cache = False
    if wanted.layers is not None:
        _shorten(config, wanted.layers, wanted.source)
    return config


def _shorten(config: Any, layers: int, source: str) -> None:
    kinds = [kind for kind in ("num_hidden_layers", "num_decoder_layers") if hasattr(config, kind)]
    if not kinds:
        raise UsageError(
            f"the config of {source} does not say a number of layers, so it cannot be given one of {layers}"
        )
    for kind in kinds:
        setattr(config, kind, layers)


def _built(task: Task, config: Any, dtype: torch.dtype, source: str) -> nn.Module:
    try:
        model: nn.Module = task.auto_class.from_config(config, dtype=dtype)
    except Exception as error:
        raise UsageError(
            f"transformers cannot build a model from the config of {source}: {reason_of(error)}"
        ) from error
    return model


def _adapted(model: nn.Module, wanted: LoRAModel) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    targets: Any = list(wanted.targets) or None
    try:
        lora = LoraConfig(r=wanted.rank, target_modules="all-linear" if targets == ["all-linear"] else targets)
        return get_peft_model(model, lora)
    except ValueError as error:
        listed = f"Its linear layers are: {', '.join(_linear_names(model))}."
        if targets is None:
            raise UsageError(
                f"PEFT does not know which modules of {wanted.source} to adapt: name some as target modules. {listed}"
            ) from error
        if not _any_matches(targets, model):
            raise UsageError(f"PEFT finds none of {', '.join(targets)} in {wanted.source}. {listed}") from error
        raise UsageError(f"PEFT cannot adapt {', '.join(targets)} of {wanted.source}: {reason_of(error)}") from error


def _any_matches(targets: Sequence[str], model: nn.Module) -> bool:
    """Return whether any target is a module's path or the end of one, which is how PEFT reads a list."""
    return any(f".{name}".endswith(f".{target}") for name, _ in model.named_modules() for target in targets)


def _linear_names(model: nn.Module) -> list[str]:
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layers

    linears = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    return sorted({name.rpartition(".")[2] for name in linears})
