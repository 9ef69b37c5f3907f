"""The options that the benchmarks of training share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .settings import Settings, add_settings
from .tasks import TASKS


def parser_of(description: str | None, name: str, task: str, phases: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of a benchmark that trains.

    Args:
        description: what ``--help`` says first.
        name: of the benchmark's folder of results.
        task: the one that is trained unless another is asked for.
        phases: what can be done; all are, unless some are chosen.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Callable[..., Any] = parser.add_argument
    add("--task", choices=TASKS, default=task, help="what is learnt (default: %(default)s)")
    add("--data", type=Path, help=f"the folder of the task's data; needed but to {phases[-1]}")
    add("--model_name", help=f"a pre-trained model: a folder, or a name on the Hub; needed but to {phases[-1]}")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(default: 0 1 2)")
    add("--phases", nargs="+", choices=phases, default=list(phases), help="(default: all)")
    add("--threads", type=int, default=1, help="(default: %(default)s)")
    results = Path(__file__).parent.parent / "results" / name
    add("--results", type=Path, default=results, help="the folder of results (default: %(default)s)")
    return parser


def parse(parser: argparse.ArgumentParser, settings: type[Settings]) -> argparse.Namespace:
    """Read the command line, settings of the runs included."""
    add_settings(parser, settings)
    return parser.parse_args()
