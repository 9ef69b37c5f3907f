"""How long does compiling take, and how does it grow with the layers?

Compiles the forward and the backward of the PEFT Llama of ``speed.py``, each time from nothing on disk, by turns with

    inductor        torch.compile as it is
    skiplora        this backend
    skiplora warm   this backend in a process of its own that finds another one's caches

for each number of layers, and prints the seconds of the first step and their ratio to Inductor's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from speed_parts.arguments import add_shape, described, parse
from speed_parts.models import build, sites_of
from speed_parts.rows import machine, write_report
from speed_parts.runners import Runner, frozen, gated
from tabulate import tabulate

ARMS = ("inductor", "skiplora", "skiplora warm")


@dataclass(frozen=True)
class Row:
    """One line of the table: an arm's first step at a number of layers, seconds, in a median over the repeats."""

    layers: int
    runner: str
    seconds: float
    ratio: float
    samples: list[float]


def main() -> None:
    """Run the benchmark."""
    args = _arguments()
    if args.one_start:
        print(json.dumps(_first_step(args, args.one_start)))
        return
    model, _ = build(argparse.Namespace(**{**vars(args), "layers": 1}))
    print(f"{described(args, len(sites_of(model)))} in each layer; {machine(args.device)}\n", flush=True)
    rows = [row for layers in args.depths for row in measure(layers, args)]
    cells = [[row.layers, row.runner, f"{row.seconds:.1f}", f"{row.ratio:.2f}"] for row in rows]
    headers = ["layers", "runner", "first step s", "ratio to inductor"]
    print(tabulate(cells, headers=headers, tablefmt="github", disable_numparse=True))
    write_report(args, rows)


def measure(layers: int, args: argparse.Namespace) -> list[Row]:
    """Return a row for each arm, the arms by turns; each start is a process of its own."""
    samples: dict[str, list[float]] = {arm: [] for arm in args.arms}
    for _ in range(args.repeats):
        for arm in args.arms:
            with tempfile.TemporaryDirectory() as caches:
                if arm == "skiplora warm":
                    _start(arm, layers, caches)
                samples[arm].append(_start(arm, layers, caches))
    reference = statistics.median(samples["inductor"])
    medians = {arm: statistics.median(taken) for arm, taken in samples.items()}
    return [Row(layers, arm, medians[arm], medians[arm] / reference, taken) for arm, taken in samples.items()]


def _start(arm: str, layers: int, caches: str) -> float:
    """Return the seconds of the first step in a process of its own, whose caches are in the folder ``caches``."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one-start", arm, "--layers", str(layers)]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": caches}
    finished = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return float(finished.stdout.splitlines()[-1])


def _first_step(args: argparse.Namespace, arm: str) -> float:
    # One layer first, so that no arm pays for what a process does only once.
    _timed(argparse.Namespace(**{**vars(args), "layers": 1}), "inductor")
    return _timed(args, arm)


def _timed(args: argparse.Namespace, arm: str) -> float:
    torch.manual_seed(args.seed)
    torch.compiler.reset()
    model, batch = build(args)
    if arm == "inductor":
        runner: Runner = frozen(model, (), batch)
    else:
        runner = gated(arm, model, batch, args, {"merge_siblings": args.merged})
    return runner.first_step()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape(parser)
    add: Callable[..., Any] = parser.add_argument
    add("--depths", type=int, nargs="+", default=[2, 4, 8], help="numbers of layers (default: %(default)s)")
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS[:2]), help="what is compared (default: %(default)s)")
    add("--merged", action="store_true", help="with merge_siblings=True")
    add("--repeats", type=int, default=1, help="starts of each (default: %(default)s)")
    add("--json", metavar="FILE", help="write the figures and arguments there")
    add("--one-start", choices=ARMS, help=argparse.SUPPRESS)
    args = parse(parser)
    args.arms = list(dict.fromkeys(("inductor", *args.arms)))
    return args


if __name__ == "__main__":
    main()
