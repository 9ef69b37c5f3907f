"""Activation checkpointing as a ``Trainer`` turns it on."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel, TrainingArguments


def remove_needless_hook(model: nn.Module, args: TrainingArguments) -> None:
    """Remove the hook on the embedding that a ``Trainer`` has set with activation checkpointing, if nothing needs it.

    Under the hook the embedding's output requires a gradient. Checkpoints with ``use_reentrant=True`` have none without
    it; with ``use_reentrant=False``, transformers' default since version 5, it only keeps the backward from ending
    above the lowest layers.

    Args:
        model: what the ``Trainer`` trains; a hook that PEFT or somebody else has set stays.
        args: the ``Trainer``'s; nothing is removed unless they turn checkpointing on.
    """
    names = ("activation_checkpointing", "gradient_checkpointing")  # the second is the older one
    turned_on = next((name for name in names if getattr(args, name, None)), None)
    if turned_on is None:
        return
    options = getattr(args, f"{turned_on}_kwargs", None) or {}
    base = getattr(model, "get_base_model", lambda: model)()
    if not options.get("use_reentrant", False) and isinstance(base, PreTrainedModel):
        base.disable_input_require_grads()
