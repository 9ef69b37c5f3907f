"""What does a larger model cost, and does anything grow faster than the model?

Varies one size of the PEFT Llama of ``speed.py`` at a time, the others as in a small base,

    layers          decoder layers
    dim             hidden size
    adapters        adapted linears in each layer
    length          tokens in a sequence

and measures of each point, in a process of its own, the seconds of the first step (it compiles, with nothing on disk)
and those of the steps after it, by the clock and of the CPU, the peak of a step's memory, and the number of regions and
of the branches that Inductor compiles for them; for

    inductor                    torch.compile as it is
    skiplora                    this backend, its gates forced open
    skiplora, lower half shut   the same compile, with the lower half of its gates forced shut
    oracle                      torch.compile, with exactly those adapters frozen; of models that are not deep

    python benchmarks/curves.py
    python benchmarks/curves.py --axes layers --values 2 4 8 --device cuda

What is in the folder of results is not made again. ``--phases report`` draws what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from curve_parts.measuring import measure
from curve_parts.points import AXES, TARGETS_OF, Size, missing
from curve_parts.report import report
from quality_parts.store import Store
from speed_parts.arguments import add_shape

PHASES = ("measure", "report")


@dataclass(frozen=True)
class Shared:
    """What all points of a folder have in common."""

    batch: int
    rank: int
    vocab: int
    head_dim: int
    scope: str
    decision: str
    device: str
    dtype: str
    checkpointing: bool


def main() -> None:
    """Run the benchmark."""
    args = _arguments()
    if args.one_point:
        torch.set_num_threads(args.threads)
        print(json.dumps(measure(Size(**json.loads(args.one_point)).arguments(args))))
        return
    store = Store(args.results, Shared(**{field.name: getattr(args, field.name) for field in fields(Shared)}))
    base = Size(args.layers, args.dim, args.adapters, args.length)
    axes = {axis: args.values or AXES[axis] for axis in args.axes}
    if "measure" in args.phases:
        for size in missing(base, axes, store.names()):
            store.write(size.name, _in_own_process(size))
            print(size.name, flush=True)
    if "report" in args.phases:
        print(report(store, base, axes))


def _in_own_process(size: Size) -> Any:
    command = [sys.executable, __file__, *sys.argv[1:], "--one-point", json.dumps(asdict(size))]
    # Inductor's workers would be nobody's children whose seconds are known.
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    finished = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(finished.stdout.splitlines()[-1])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape(parser)
    parser.set_defaults(**asdict(Size()), batch=2, vocab=256)
    add: Callable[..., Any] = parser.add_argument
    add("--axes", nargs="+", choices=AXES, default=list(AXES), help="what is varied (default: all)")
    add("--values", type=int, nargs="+", help="of the axes, in place of theirs")
    add(
        "--adapters",
        type=int,
        choices=TARGETS_OF,
        default=Size().adapters,
        help="adapted linears in a layer, of the base",
    )
    add(
        "--oracle-layers",
        type=int,
        default=4,
        help="the oracle is measured up to so many layers (default: %(default)s)",
    )
    add("--rounds", type=int, default=100, help="timed rounds (default: %(default)s)")
    add("--warmup", type=int, default=3, help="untimed steps of each arm (default: %(default)s)")
    add("--threads", type=int, default=1, help="(default: %(default)s)")
    add("--phases", nargs="+", choices=PHASES, default=list(PHASES), help="(default: both)")
    results = Path(__file__).parent / "results" / "curves"
    add("--results", type=Path, default=results, help="the folder of results (default: %(default)s)")
    add("--one-point", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
