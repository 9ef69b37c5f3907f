"""The options that the benchmarks of training share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .settings import Kind, Settings, add_settings, settings_of
from .store import SettingsError, Store, kept_settings
from .tasks import TASKS, Task


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


def parse(
    parser: argparse.ArgumentParser, kind: type[Settings], arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """Read the command line, settings of the runs included.

    Ends the program where a phase is asked for that needs a task, and the task's data or model are not given.
    """
    add_settings(parser, kind)
    args = parser.parse_args(arguments)
    *needing, _ = parser.get_default("phases")
    asked = [phase for phase in needing if phase in args.phases]
    left_out = [option for option in ("data", "model_name") if getattr(args, option) is None]
    if asked and left_out:
        parser.error(f"to {' and '.join(asked)} give {' and '.join(f'--{option}' for option in left_out)}")
    return args


@contextmanager
def errors_in_a_line(program: str) -> Iterator[None]:
    """End the program with one line where a folder of results does not go with the options."""
    try:
        yield
    except SettingsError as error:
        sys.exit(f"{program}: {error}")


def store_of(args: argparse.Namespace, kind: type[Kind]) -> Store[Kind]:
    """Open the folder of results that the options ask for.

    Raises:
        SettingsError: its runs were made with other settings than the options say.
    """
    folder = args.results / args.task
    return Store(folder, settings_of(args, kind, kept_settings(folder)))


def task_of(args: argparse.Namespace, store: Store[Kind]) -> Task:
    """Make the task that the options ask for.

    Raises:
        SettingsError: the runs in the store are of another model, or of other rows.
    """
    task = TASKS[args.task](args.data, args.model_name, store.settings)
    store.check_task(task.digest())
    return task
