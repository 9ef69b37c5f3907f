"""How long does compiling take, and how does it grow with the layers?

Compiles the forward and the backward of the PEFT Llama of ``speed.py``, each time from nothing on disk, by turns with

    inductor        torch.compile as it is
    skiplora        this backend; skiplora merged, skiplora outlined: with merge_siblings=True, with outline_layers=True
    skiplora warm   this backend in a process of its own that finds another one's caches
    inductor by layer, skiplora by layer
                    each layer compiled by itself, and what is around them not at all; this backend with
                    decision="previous", so that what lies below the lowest open gate is left out across the graphs

for each number of layers, and prints the seconds of the first step, by the clock and of the CPU, the C++ compiler's
among them, with their ratios to Inductor's. On a machine that does other work those of the CPU are what compares.

Inductor compiles one kernel after the other: the workers that it would hand Triton's kernels to are processes that
nobody waits for, whose seconds are not known. With them a first step takes less by the clock.
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
from dataclasses import asdict, dataclass
from typing import Any

import torch
from speed_parts.arguments import add_shape, described, parse
from speed_parts.clock import Seconds, cpu_seconds
from speed_parts.models import build, sites_of
from speed_parts.rows import machine, write_report
from speed_parts.runners import BY_LAYER, VARIANTS, Runner, frozen, gated
from tabulate import tabulate

WARM = "skiplora warm"
HEADERS = ("layers", "runner", "first step s", "of the CPU", "ratio to inductor", "of the CPU")
INDUCTOR = ("inductor", f"inductor{BY_LAYER}")
ARMS = (*INDUCTOR, *VARIANTS, WARM)


@dataclass(frozen=True)
class Row:
    """One line of the table: an arm's first step at a number of layers, in a median over the repeats."""

    layers: int
    runner: str
    seconds: Seconds
    ratio: Seconds
    samples: list[Seconds]


def main() -> None:
    """Run the benchmark."""
    args = _arguments()
    if args.one_start:
        print(json.dumps(asdict(_first_step(args, args.one_start))))
        return
    model, _ = build(argparse.Namespace(**{**vars(args), "layers": 1}))
    print(f"{described(args, len(sites_of(model)))} in each layer; {machine(args.device)}\n", flush=True)
    rows = [row for layers in args.depths for row in measure(layers, args)]
    print(tabulate(map(_cells, rows), headers=HEADERS, tablefmt="github", disable_numparse=True))
    write_report(args, rows)


def _cells(row: Row) -> list[str]:
    seconds = [f"{row.seconds.wall:.1f}", f"{row.seconds.cpu:.1f}"]
    return [str(row.layers), row.runner, *seconds, f"{row.ratio.wall:.2f}", f"{row.ratio.cpu:.2f}"]


def measure(layers: int, args: argparse.Namespace) -> list[Row]:
    """Return a row for each arm, the arms by turns; each start is a process of its own."""
    samples: dict[str, list[Seconds]] = {arm: [] for arm in args.arms}
    for _ in range(args.repeats):
        for arm in args.arms:
            with tempfile.TemporaryDirectory() as caches:
                if arm == WARM:
                    _start(arm, layers, caches)
                samples[arm].append(_start(arm, layers, caches))
    medians = {arm: _median(taken) for arm, taken in samples.items()}
    reference = medians["inductor"]
    ratios = {arm: Seconds(own.wall / reference.wall, own.cpu / reference.cpu) for arm, own in medians.items()}
    return [Row(layers, arm, medians[arm], ratios[arm], taken) for arm, taken in samples.items()]


def _median(taken: list[Seconds]) -> Seconds:
    return Seconds(statistics.median(one.wall for one in taken), statistics.median(one.cpu for one in taken))


def _start(arm: str, layers: int, caches: str) -> Seconds:
    """Return the seconds of the first step in a process of its own, whose caches are in the folder ``caches``."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one-start", arm, "--layers", str(layers)]
    finished = subprocess.run(command, env=environment(caches), stdout=subprocess.PIPE, check=True, text=True)
    return Seconds(**json.loads(finished.stdout.splitlines()[-1]))


def environment(caches: str) -> dict[str, str]:
    """Return that of a start: Inductor without workers, its caches in the folder ``caches``."""
    return {**os.environ, "TORCHINDUCTOR_CACHE_DIR": caches, "TORCHINDUCTOR_COMPILE_THREADS": "1"}


def _first_step(args: argparse.Namespace, arm: str) -> Seconds:
    # One layer first, so that no arm pays for what a process does only once.
    _timed(argparse.Namespace(**{**vars(args), "layers": 1}), "inductor")
    return _timed(args, arm)


def _timed(args: argparse.Namespace, arm: str) -> Seconds:
    torch.manual_seed(args.seed)
    torch.compiler.reset()
    model, batch = build(args)
    if arm in INDUCTOR:
        runner: Runner = frozen(model, (), batch, by_layer=arm.endswith(BY_LAYER))
    else:
        runner = gated(arm, model, batch, args, VARIANTS["skiplora" if arm == WARM else arm])
    before = cpu_seconds()
    return Seconds(runner.first_step(), cpu_seconds() - before)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape(parser)
    add: Callable[..., Any] = parser.add_argument
    add("--depths", type=int, nargs="+", default=[2, 4, 8], help="numbers of layers (default: %(default)s)")
    add(
        "--arms",
        nargs="+",
        choices=ARMS,
        default=["inductor", "skiplora"],
        help="what is compared (default: %(default)s)",
    )
    add("--repeats", type=int, default=1, help="starts of each (default: %(default)s)")
    add("--json", metavar="FILE", help="write the figures and arguments there")
    add("--one-start", choices=ARMS, help=argparse.SUPPRESS)
    args = parse(parser)
    args.arms = list(dict.fromkeys(("inductor", *args.arms)))
    return args


if __name__ == "__main__":
    main()
