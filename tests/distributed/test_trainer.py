"""A Trainer in two processes: ranks decide alike, the first writes the log, and a resumed run repeats the whole one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from blocks import SITES, WIDTH, Blocks
from models import with_lora
from processes import run
from torch import Tensor
from transformers import Trainer, TrainingArguments

import skiplora_fx
from skiplora_fx.integrations.transformers import SkipLoraCallback
from skiplora_fx.read_log import read_log

pytestmark = pytest.mark.xdist_group("trainer")  # all tests look at one run

STEPS = 6


class WithLoss(Blocks):
    """The blocks, with an output as a Trainer expects it."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": super().forward(x)}


def _train(folder: Path, **resume: Any) -> list[list[bool]]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = with_lora(WithLoss(), ["up", "down"])
    generator = torch.Generator().manual_seed(1)
    rows = [{"x": torch.randn(WIDTH, generator=generator)} for _ in range(STEPS * 8)]
    callback = SkipLoraCallback(threshold=1.0, warmup_steps=1, probe_every=0, log=folder / "run.jsonl")
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        ddp_backend="gloo",
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        save_steps=STEPS // 2,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[callback])
    trainer.train(**resume)
    return [[site.skipped for site in skiplora_fx.sites(model)], [site.ratio for site in skiplora_fx.sites(model)]]


def train_all(folder: str) -> dict[str, Any]:
    rank = str(dist.get_rank())
    ranks = str(dist.get_world_size())
    # As torchrun sets them; the process group is there already, so nobody looks at the port.
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=ranks, MASTER_ADDR="localhost", MASTER_PORT="0")
    whole = _train(Path(folder))
    checkpoint = Path(folder, f"checkpoint-{STEPS // 2}")
    dist.barrier()
    return {"whole": whole, "resumed": _train(Path(folder), resume_from_checkpoint=str(checkpoint))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trainer")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return run(train_all, str(folder))


def test_ranks_know_the_same_also_when_they_are_resumed(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0] == ranks[1]
    for (skipped, ratios), (skipped_again, ratios_again) in [(rank["whole"], rank["resumed"]) for rank in ranks]:
        assert skipped == skipped_again
        assert ratios == pytest.approx(ratios_again)


def test_the_first_rank_writes_the_log(ranks: list[dict[str, Any]], folder: Path) -> None:
    found = read_log(folder / "run.jsonl")
    assert (found.runs, found.steps, found.sites) == (1, list(range(STEPS)), [f"{site} [default]" for site in SITES])
    assert found.open[0].tolist() == [1.0] * len(SITES)  # the warm-up
    assert not bool(found.open[1:].all())
