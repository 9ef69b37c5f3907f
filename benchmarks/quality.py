"""Does it pay? The score of each way to skip, against the time that it takes.

Two things are measured apart. Runs of training give each arm's score against its steps; they are eager, with the gates
of ``skiplora_fx.apply``, and may run beside other work. Then the decisions that were made in them are timed, compiled,
in one process and interleaved with full LoRA under Inductor, which makes steps into time. An arm is judged against full
LoRA trained for as much time, which means for fewer steps.

    python benchmarks/quality.py --data MRPC_FOLDER --model_name MODEL_FOLDER
    python benchmarks/quality.py --data MRPC_FOLDER --model_name MODEL_FOLDER --arms full micro --seeds 0 1

What is in the folder of results is not made again, and settings that are not given are those of the runs there: a
folder of one's own is ``--results``. ``--phases`` chooses among train, time and report.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from quality_parts.arms import ARMS
from quality_parts.options import errors_in_a_line, parse, parser_of, store_of, task_of
from quality_parts.report import report
from quality_parts.settings import Settings
from quality_parts.store import Store
from quality_parts.timing import time_masks
from quality_parts.training import Trainer

PHASES = ("train", "time", "report")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = _arguments(arguments)
    torch.set_num_threads(args.threads)
    with errors_in_a_line("quality.py"):
        _run(args)


def _run(args: argparse.Namespace) -> None:
    store = store_of(args, Settings)
    settings = store.settings
    if "train" in args.phases or "time" in args.phases:
        task = task_of(args, store)
    if "train" in args.phases:
        trainer = Trainer(task, settings)
        for arm, length, seed in missing(args, store):
            run = trainer.run(arm, ARMS[arm], length, seed)
            store.add(run)
            print(f"{arm} {length:g} seed {seed}: {run.scores}", flush=True)
    if "time" in args.phases:
        time_masks(task, store, settings, args.rounds, args.arms)
    if "report" in args.phases:
        print(report(store) if store.runs() else f"no run is in {store.folder} yet")


def missing(args: argparse.Namespace, store: Store) -> Iterator[tuple[str, float, int]]:
    """Yield arm, length and seed of each run that is asked for and not there; all arms with one seed, then the next."""
    for seed in args.seeds:
        for arm in args.arms:
            for length in args.full_lengths if arm == "full" else args.lengths:
                if not store.has(arm, length, seed):
                    yield arm, length, seed


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__, "quality", "mrpc", PHASES)
    add: Callable[..., Any] = parser.add_argument
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="ways to train (default: all)")
    add("--lengths", nargs="+", type=float, default=[1.0], help="of the runs, as shares of --steps (default: 1)")
    add("--full_lengths", nargs="+", type=float, default=[0.5, 0.75, 1.0], help="those of full LoRA")
    add("--rounds", type=int, default=8, help="timed rounds (default: %(default)s)")
    return parse(parser, Settings, arguments)


if __name__ == "__main__":
    main()
