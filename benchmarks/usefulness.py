"""What is a site's gradient worth? Takes steps of full LoRA apart, and asks which statistic knows it beforehand.

Trains full LoRA as ``quality.py`` does. At every k-th step (``--every``) the optimizer's update is applied in parts, to
one adapter alone, to one block, to the lowest blocks together, and the drop of the loss is measured: on held-out rows
(``--rows``), which is what a step is worth, and on the step's own batch, which is what its gradient promises. Beside it
stand what is known of each adapter without that, and the FLOPs that its gate and a truncation above it save.

    python benchmarks/usefulness.py --task instruct --data INSTRUCT_FOLDER --model_name MODEL_FOLDER

A run that is in the folder of results is not made again. ``--phases`` chooses among watch and report.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from quality_parts.options import errors_in_a_line, parse, parser_of, store_of, task_of
from quality_parts.settings import Settings
from quality_parts.store import Store
from quality_parts.training import Trainer
from usefulness_parts.record import Record
from usefulness_parts.report import report
from usefulness_parts.watching import watched

PHASES = ("watch", "report")


@dataclass(frozen=True)
class Watched(Settings):
    """How runs are trained and looked at.

    Attributes:
        every: steps from one that is taken apart to the next.
        rows: held-out rows that a step's worth is measured on.
    """

    every: int = 10
    rows: int = 32


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = parse(parser_of(__doc__, "usefulness", "instruct", PHASES), Watched, arguments)
    torch.set_num_threads(args.threads)
    with errors_in_a_line("usefulness.py"):
        _run(args)


def _run(args: argparse.Namespace) -> None:
    store = store_of(args, Watched)
    settings = store.settings
    left = [seed for seed in args.seeds if f"watched-{seed}" not in store.names()]
    if "watch" in args.phases and left:
        trainer = Trainer(task_of(args, store), settings)
        for seed in left:
            store.write(f"watched-{seed}", watched(trainer, seed, settings.every, settings.rows).to_json())
            print(f"seed {seed} was watched", flush=True)
    if "report" in args.phases:
        records = [Record.from_json(store.read(name)) for name in sorted(_watched(store))]
        print(report(store.folder, records, settings.every) if records else f"no run is in {store.folder} yet")


def _watched(store: Store[Watched]) -> set[str]:
    return {name for name in store.names() if name.startswith("watched-")}


if __name__ == "__main__":
    main()
