"""The lines of the table, and where the figures come from."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .runners import Runner, Sample


@dataclass(frozen=True)
class Row:
    """One line of the table: a runner under a mask, in medians over the rounds, seconds.

    Attributes:
        against: whose times the ratios are to.
        speedup: Inductor's backward with nothing skipped over this one, within a round; None if it did not run.
    """

    skipped: str
    runner: str
    compile_s: float | None
    forward_s: float
    backward_s: float
    forward_ratio: float
    backward_ratio: float
    against: str
    speedup: float | None
    samples: list[Sample]


HEADERS = ["skipped", "runner", "compile s", "forward ms", "backward ms", "fwd ratio", "bwd ratio", "ratio to"]


def rows(mask: str, samples: Mapping[Runner, Sequence[Sample]]) -> Iterator[Row]:
    """Yield the row of each runner; ratios are to the oracle, or to Inductor where there is none."""
    by_name = {runner.name: taken for runner, taken in samples.items()}
    against = "oracle" if "oracle" in by_name else "inductor"
    plain = by_name.get("inductor")
    for runner, taken in samples.items():
        yield Row(
            mask,
            runner.name,
            runner.compile_s,
            statistics.median(sample.forward for sample in taken),
            statistics.median(sample.backward for sample in taken),
            ratio(taken, by_name[against], lambda sample: sample.forward),
            ratio(taken, by_name[against], lambda sample: sample.backward),
            against,
            ratio(plain, taken, lambda sample: sample.backward) if plain else None,
            list(taken),
        )


def ratio(mine: Sequence[Sample], theirs: Sequence[Sample], part: Callable[[Sample], float]) -> float:
    """Return the median over the rounds of ``part`` of mine over that of theirs."""
    return statistics.median(part(one) / part(other) for one, other in zip(mine, theirs, strict=True))


def cells(row: Row) -> list[str]:
    """Return a row as text, under :data:`HEADERS`."""
    return [
        row.skipped,
        row.runner,
        "" if row.compile_s is None else f"{row.compile_s:.1f}",
        f"{1e3 * row.forward_s:.1f}",
        f"{1e3 * row.backward_s:.1f}",
        f"{row.forward_ratio:.2f}",
        f"{row.backward_ratio:.2f}",
        row.against,
    ]


def write_report(args: argparse.Namespace, found: Sequence[object]) -> None:
    """Write arguments, machine and rows, which are dataclasses, to the file ``args.json``, if there is one."""
    if args.json:
        arguments = {name: str(value) for name, value in vars(args).items()}
        report = {"arguments": arguments, "machine": machine(args.device), "rows": found}
        Path(args.json).write_text(json.dumps(report, default=asdict, indent=1) + "\n")


def machine(device: str) -> str:
    """Return what the figures were taken on."""
    on_gpu = torch.device(device).type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"
