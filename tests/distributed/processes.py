"""Several processes of this machine that train together, over gloo."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SECONDS = 300
"""After so long a run that is not over is taken to hang."""

# Ranks are forked from a process that has these already: to import them takes longer than most tests.
multiprocessing.set_forkserver_preload(["torch._dynamo", "transformers", "peft", "accelerate", "skiplora_fx.backend"])


def run(work: Callable[..., Any], *arguments: Any, ranks: int = 2) -> list[Any]:
    """Call ``work(*arguments)`` in so many processes, with a process group; return what each returned.

    What raises in one of them raises here. A run that hangs is ended, and fails the test.

    Args:
        work: a function that can be imported by its name.
        arguments: what it is called with.
        ranks: how many.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = (ranks, folder, work, arguments)
        context = mp.start_processes(_begin, given, nprocs=ranks, join=False, start_method="forkserver")
        end = time.monotonic() + SECONDS
        while not context.join(timeout=1):
            if time.monotonic() > end:
                for process in context.processes:
                    process.kill()
                pytest.fail(f"{work.__name__}: {ranks} ranks were not done after {SECONDS} s")
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(ranks)]


def _begin(rank: int, ranks: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    torch.save(work(*arguments), Path(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()
