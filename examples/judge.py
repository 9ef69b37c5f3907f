"""What a tuned model is worth on text that it has not seen."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel, TaskType
from trainer import TimedTrainer, arguments
from transformers import EvalPrediction
from tune import Job


@dataclass(frozen=True)
class Marks:
    """The mean loss on the held-out examples and, for classification, the share of them that is right."""

    loss: float
    accuracy: float | None


def judge(job: Job, adapter: Path | None, batch_size: int, folder: Path) -> Marks:
    """Mark the job's model with the ``adapter`` saved there; without one, the model as it is.

    The model is built anew and runs eagerly, so that no backend has a hand in its own marks.
    """
    model = copy.deepcopy(job.base)
    classifies = job.task_type == TaskType.SEQ_CLS
    found = TimedTrainer(
        model=model if adapter is None else PeftModel.from_pretrained(model, str(adapter)),
        args=arguments(folder, seed=0, per_device_eval_batch_size=batch_size, prediction_loss_only=not classifies),
        compute_metrics=_accuracy if classifies else None,
    ).predict(job.held_out)
    return Marks(found.metrics["test_loss"], found.metrics.get("test_accuracy"))


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}
