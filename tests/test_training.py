"""With transformers' Trainer: compiled in place, counted by optimizer steps, logged, saved whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import skiplora_fx
from skiplora_fx.errors import UsageError
from skiplora_fx.integrations.layers import layers_of
from skiplora_fx.integrations.transformers import SkipLoraCallback
from skiplora_fx.read_log import read_log

pytestmark = pytest.mark.xdist_group("training")  # most tests look at one run
SHARES_COMPILED = True
STEPS, ACCUMULATED, WARMUP = 6, 2, 3


def rows(count: int) -> list[dict[str, torch.Tensor]]:
    return [{name: value[0] for name, value in models.tokens(1, 12, seed).items()} for seed in range(count)]


def arguments(directory: Path, **overrides: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "output_dir": str(directory),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": ACCUMULATED,
        "logging_steps": 2,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
    }
    return TrainingArguments(**{**defaults, **overrides})


class Watcher(TrainerCallback):
    """Keeps what a callback behind ours is given to log, and how many adapters were skipped at each step."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []
        self.skipped: list[int] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.skipped.append(sum(site.skipped for site in skiplora_fx.sites(model)))


class Run:
    """One training run under the callback, every adapter below the threshold."""

    def __init__(self, directory: Path) -> None:
        torch.compiler.reset()
        torch.manual_seed(0)
        self.directory = directory
        self.watcher = Watcher()
        model = models.with_lora(models.llama(1))
        callback = SkipLoraCallback(threshold=1e9, warmup_steps=WARMUP, probe_every=0)
        self.trainer = Trainer(
            model=model,
            args=arguments(directory, report_to=["tensorboard"]),
            train_dataset=rows(40),
            callbacks=[self.watcher, callback],
        )
        self.trainer.train()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("run"))


def test_warm_up_counts_optimizer_steps_not_backwards(run: Run) -> None:
    assert run.watcher.skipped == [0] * WARMUP + [2] * (STEPS - WARMUP)
    assert {site.backwards for site in skiplora_fx.sites(run.trainer.model)} == {STEPS * ACCUMULATED}


def test_callbacks_that_were_there_before_see_the_numbers(run: Run) -> None:
    logged = [logs for logs in run.watcher.logs if "loss" in logs]
    assert [logs["skiplora/skipped"] for logs in logged] == [0.0, 1.0, 1.0]
    assert logged[-1]["skiplora/adapters"] == 2
    assert logged[-1]["skiplora/ratio_min"] <= logged[-1]["skiplora/ratio_p50"] <= logged[-1]["skiplora/ratio_max"]


def test_tensorboard_has_the_numbers(run: Run) -> None:
    (events,) = run.directory.rglob("events.out.tfevents*")
    accumulator = EventAccumulator(str(events)).Reload()
    assert [event.value for event in accumulator.Scalars("train/skiplora/skipped")] == [0.0, 1.0, 1.0]


def test_saved_adapter_is_whole_and_reloads_to_the_same_outputs(run: Run, tmp_path: Path) -> None:
    run.trainer.save_model(str(tmp_path))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    trained = {name for name, parameter in run.trainer.model.named_parameters() if parameter.requires_grad}
    assert {name.replace(".weight", ".default.weight") for name in saved} == trained
    assert all(tensor.abs().max() > 0 for tensor in saved.values())
    torch.manual_seed(0)
    reloaded = PeftModel.from_pretrained(models.llama(1), tmp_path).eval()
    model = run.trainer.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(**models.tokens()).logits, reloaded(**models.tokens()).logits)


def test_zero_b_learns_after_a_warm_up(tmp_path: Path) -> None:
    """B = 0 makes every ratio 0; the warm-up is what lets an adapter begin."""
    model = models.with_lora(models.llama(1))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.zeros_(parameter)
    callback = SkipLoraCallback(threshold=1e-6, warmup_steps=2, probe_every=0)
    trainer = Trainer(model=model, args=arguments(tmp_path), train_dataset=rows(40), callbacks=[callback])
    trainer.train()
    assert all(site.ratio > 1e-6 and not site.skipped for site in skiplora_fx.sites(model))


def test_a_schedule_is_told_how_long_the_run_is(tmp_path: Path) -> None:
    watcher, model = Watcher(), models.with_lora(models.llama(1))
    callback = SkipLoraCallback(policy="schedule", policy_kwargs={"last": 1.0}, warmup_steps=0, probe_every=0)
    args = arguments(tmp_path, gradient_accumulation_steps=1)
    Trainer(model=model, args=args, train_dataset=rows(12), callbacks=[watcher, callback]).train()
    adapters = len(skiplora_fx.sites(model))
    assert watcher.skipped == [0] * (STEPS // 2) + [adapters] * (STEPS // 2)


@pytest.mark.parametrize("by_layer", [False, True])
def test_a_run_that_does_not_say_what_decides_follows_the_schedule(by_layer: bool, tmp_path: Path) -> None:
    """Open for a tenth of the steps, then one block of two at the end, and the optimizer leaves it alone."""
    watcher, model = Watcher(), models.with_lora(models.llama(2))
    args = arguments(tmp_path, gradient_accumulation_steps=1)
    callback = SkipLoraCallback(by_layer=by_layer)
    trainer = Trainer(model=model, args=args, train_dataset=rows(12), callbacks=[watcher, callback])
    trainer.train()
    resting = len(skiplora_fx.sites(model)) // 2
    assert watcher.skipped == [0, 0, 0, 0, resting, resting]
    counts = {name: int(trainer.optimizer.state[parameter]["step"]) for name, parameter in trained(model)}
    assert {name: count for name, count in counts.items() if count == 4} == {
        name: 4 for name in counts if ".0." in name
    }
    assert {count for name, count in counts.items() if ".1." in name} == {STEPS}


def test_a_model_without_layers_that_are_alike_is_refused_before_training(tmp_path: Path) -> None:
    model = models.with_lora(models.llama(1))
    with pytest.raises(UsageError, match=r"by_layer=True: PeftModel.* has no nn\.ModuleList"):
        Trainer(model=model, args=arguments(tmp_path), callbacks=[SkipLoraCallback(by_layer=True)])


@pytest.mark.parametrize(
    ("build", "layers"),
    [
        (lambda: models.with_lora(models.llama(3)), ["model.layers"]),
        (lambda: models.with_lora(models.gpt2(2), ["c_attn"], fan_in_fan_out=True), ["transformer.h"]),
        (lambda: models.with_lora(models.t5(2), ["q", "v"]), ["encoder.block", "decoder.block"]),
        (lambda: models.with_lora(models.bert(2), ["query"], task_type="SEQ_CLS"), ["bert.encoder.layer"]),
    ],
    ids=["Llama", "GPT-2", "T5", "BERT"],
)
def test_the_layers_of_a_model(build: Callable[[], nn.Module], layers: list[str]) -> None:
    model = build()
    wanted = [member for name in layers for member in model.get_base_model().get_submodule(name)]
    assert layers_of(model) == wanted


def test_of_lists_in_lists_the_members_are_layers() -> None:
    """As where stages hold blocks: nobody calls a list, and so none is compiled."""
    stages = nn.ModuleList(nn.ModuleList(nn.Linear(2, 2) for _ in range(count)) for count in (2, 1))
    assert layers_of(nn.Sequential(stages)) == [*stages[0], *stages[1]]


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    ("said", "policy"),
    [({"warmup_steps": 1}, "Schedule"), ({"threshold": 0.1}, "Threshold"), ({"scope": "layer"}, "Threshold")],
)
def test_what_decides_unless_it_is_said(said: dict[str, Any], policy: str, tmp_path: Path) -> None:
    model, log = models.with_lora(models.llama(1)), tmp_path / "run.jsonl"
    callback = SkipLoraCallback(log=log, **said)
    Trainer(model=model, args=arguments(tmp_path, max_steps=2), train_dataset=rows(8), callbacks=[callback]).train()
    assert read_log(log).policy == policy


def test_wrapper_of_torch_compile_is_refused(tmp_path: Path) -> None:
    model: Any = torch.compile(models.with_lora(models.llama(1)))
    with pytest.raises(skiplora_fx.UsageError, match="saves an empty adapter"):
        Trainer(model=model, args=arguments(tmp_path), train_dataset=rows(2), callbacks=[SkipLoraCallback()])


def test_compiling_twice_is_refused(tmp_path: Path) -> None:
    model = models.with_lora(models.llama(1))
    args = arguments(tmp_path, torch_compile=True)
    with pytest.raises(skiplora_fx.UsageError, match="torch_compile"):
        Trainer(model=model, args=args, train_dataset=rows(2), callbacks=[SkipLoraCallback()])


def test_bad_options_show_before_training() -> None:
    with pytest.raises(skiplora_fx.ConfigError, match=r"treshold.*Did you mean 'threshold'"):
        SkipLoraCallback(treshold=0.1)
