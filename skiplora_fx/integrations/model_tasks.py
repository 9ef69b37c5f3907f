"""What a model of transformers is for, as its config tells, and what it is then called with in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError


@dataclass(frozen=True)
class Task:
    """One thing that models are trained for.

    Attributes:
        name: in words.
        auto_class: the class of transformers that builds such models from a config.
        models: the class of model for each class of config.
        batch: makes a batch, labels included, from the config, the number of examples, the number of tokens in each,
            and the dtype of what is no token.
    """

    name: str
    auto_class: Any
    models: Any
    batch: Callable[[Any, int, int, torch.dtype], dict[str, Tensor]]


def task_of(config: Any, source: str) -> Task:
    """Return the task of a config: that of its ``architectures``, or the first that there is a model of its type for.

    Raises:
        UsageError: there is none among those that are known.
    """
    tasks = _tasks()
    possible = [task for task in tasks if type(config) in task.models]
    if not possible:
        names = " and no ".join(task.name for task in tasks)
        raise UsageError(
            f"{source} is a {config.model_type!r}, of which transformers has no {names}. "
            "Build the model yourself, and call skiplora_fx.explain(model, **batch)."
        )
    wanted = config.architectures or ()
    return next((task for task in possible if task.models[type(config)].__name__ in wanted), possible[0])


def _tasks() -> tuple[Task, ...]:
    import transformers as hf

    return (
        Task("causal language model", hf.AutoModelForCausalLM, hf.MODEL_FOR_CAUSAL_LM_MAPPING, _texts),
        Task("sequence-to-sequence model", hf.AutoModelForSeq2SeqLM, hf.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, _pairs),
        Task("masked language model", hf.AutoModelForMaskedLM, hf.MODEL_FOR_MASKED_LM_MAPPING, _texts),
        Task(
            "sequence classifier",
            hf.AutoModelForSequenceClassification,
            hf.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
            _labelled_texts,
        ),
        Task(
            "image classifier",
            hf.AutoModelForImageClassification,
            hf.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
            _labelled_images,
        ),
    )


def _texts(config: Any, batch: int, length: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return ``input_ids`` and ``labels``, int64 ``[batch, length]``."""
    tokens = torch.zeros(batch, length, dtype=torch.int64)
    return {"input_ids": tokens, "labels": tokens}


def _pairs(config: Any, batch: int, length: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return ``input_ids``, ``decoder_input_ids`` and ``labels``, int64 ``[batch, length]``."""
    texts = _texts(config, batch, length, dtype)
    return texts | {"decoder_input_ids": texts["input_ids"]}


def _labelled_texts(config: Any, batch: int, length: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return ``input_ids``, int64 ``[batch, length]``, and ``labels``, int64 ``[batch]``."""
    if config.pad_token_id is None:
        config.pad_token_id = 0  # without one a classifier of several texts cannot tell where each ends
    return _texts(config, batch, length, dtype) | {"labels": torch.zeros(batch, dtype=torch.int64)}


def _labelled_images(config: Any, batch: int, length: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return ``pixel_values``, ``[batch, channels, height, width]``, and ``labels``, int64 ``[batch]``."""
    size = getattr(config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.zeros(batch, getattr(config, "num_channels", 3), height, width, dtype=dtype)
    return {"pixel_values": images, "labels": torch.zeros(batch, dtype=torch.int64)}
