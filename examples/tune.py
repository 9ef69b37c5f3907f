"""LoRA-tune a model under one of two torch.compile backends."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from problems import explained
from torch import nn
from trainer import StepTime, TimedTrainer, arguments
from transformers import PreTrainedModel, set_seed
from transformers.pytorch_utils import Conv1D

import skiplora_fx
from skiplora_fx.integrations.transformers import SkipLoraCallback

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Settings:
    """How to tune; the defaults are those for a real model on a real dataset.

    Attributes:
        epochs: passes over the training data, if ``max_steps`` is -1.
        max_steps: optimiser steps; -1 leaves it to ``epochs``.
        threshold, scope, policy, decision, skipped_grad, warmup_steps, probe_every: options of the skiplora backend.
        log: a file for a line of JSON about each step under skiplora, which `skiplora plot` draws; none if empty.
        rank, alpha: of the adapters.
        targets: names of the layers that get an adapter, separated by commas, or ``all-linear``.
        max_length: tokens in an example.
    """

    epochs: float = 3
    max_steps: int = -1
    threshold: float = 0.05
    scope: str = "adapter"
    policy: str = "threshold"
    decision: str = "current"
    skipped_grad: str = "zero"
    warmup_steps: int = 100
    probe_every: int = 50
    log: str = ""
    rank: int = 8
    alpha: int = 16
    targets: str = ALL_LINEAR
    batch_size: int = 16
    max_length: int = 128
    learning_rate: float = 2e-4
    seed: int = 0


@dataclass(frozen=True)
class Job:
    """What is tuned on what: every run of a job starts from the same weights and sees the same batches."""

    base: PreTrainedModel
    train: Dataset
    held_out: Dataset
    task_type: TaskType


@dataclass(frozen=True)
class Run:
    """One tuning: the adapter's folder, a clock's marks for each step and, under skiplora, its sites."""

    backend: str
    adapter: Path
    times: list[StepTime]
    sites: list[skiplora_fx.SiteState]


def tune(job: Job, settings: Settings, backend: str, folder: Path) -> Run:
    """Tune a copy of the job's model under ``backend``, inductor or skiplora, and save its adapter in ``folder``."""
    torch._dynamo.reset()
    model = with_lora(job, settings)
    skipping = backend == "skiplora"
    if not skipping:
        model.compile(backend=backend)
    trainer = TimedTrainer(
        model=model,
        args=arguments(
            folder,
            settings.seed,
            num_train_epochs=settings.epochs,
            max_steps=settings.max_steps,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            dataloader_drop_last=True,
            logging_steps=40,
        ),
        train_dataset=job.train,
        callbacks=[_skip_callback(settings)] if skipping else [],
    )
    trainer.train()
    model.save_pretrained(folder / backend)
    return Run(backend, folder / backend, trainer.times, skiplora_fx.sites(model) if skipping else [])


def with_lora(job: Job, settings: Settings) -> PeftModel:
    """Return a copy of the job's model with new adapters, the same at each call."""
    set_seed(settings.seed)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=ALL_LINEAR
        if settings.targets == ALL_LINEAR
        else [name.strip() for name in settings.targets.split(",")],
        task_type=job.task_type,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in job.base.modules()),
    )
    with explained(
        f"Could not put adapters on the layers {settings.targets!r}",
        f"--targets takes {ALL_LINEAR}, or some of these, separated by commas: {', '.join(_linear_names(job.base))}.",
    ):
        return get_peft_model(copy.deepcopy(job.base), config)


def _skip_callback(settings: Settings) -> SkipLoraCallback:
    return SkipLoraCallback(
        log=settings.log or None,
        threshold=settings.threshold,
        scope=settings.scope,
        policy=settings.policy,
        decision=settings.decision,
        skipped_grad=settings.skipped_grad,
        warmup_steps=settings.warmup_steps,
        probe_every=settings.probe_every,
    )


def _linear_names(model: nn.Module) -> list[str]:
    linear = (name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D)))
    return sorted({name.rpartition(".")[2] for name in linear})
