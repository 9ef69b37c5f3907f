"""``skiplora diff``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import Any

from ..config import scope_options
from ..errors import UsageError
from ..read_log import read_log
from ..whole_file import whole_file
from .files import read_snapshot
from .graph_diff import GraphDiff, compare, diff, stages_of
from .page import write_page

Build = Callable[[str], tuple[Any, dict[str, Any]]]
"""Returns, for the name of a model, the model and what it is called with."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``skiplora diff`` takes beside what describes a model."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="id on the Hub, or a folder with a config.json; or one snapshot, or two to compare: .json files",
    )
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="write JSON to a file, or print it, instead of text"
    )
    parser.add_argument("--html", metavar="FILE", help="write one HTML file that shows all of it, instead of text")
    parser.add_argument("--log", metavar="FILE", help="of a run of the model: the HTML file shows its timeline")
    parser.add_argument(
        "--run",
        type=int,
        metavar="N",
        help="which of the log's runs, from 1; the one that was written last if not given",
    )
    parser.add_argument("--text", action="store_true", help="print a unified diff, as where the output is no terminal")
    parser.add_argument("--only-changed", action="store_true", help="leave out comparisons that find no difference")
    parser.add_argument("--site", default="", metavar="GLOB", help="only what belongs to sites whose names match")
    parser.add_argument("--stage", default="", metavar="NAME", help="only comparisons with this stage")


def run(arguments: argparse.Namespace, build: Build) -> int:
    """Print or write what was asked for; return 0 if nothing differs, else 1.

    Raises:
        SkipLoraError: a file cannot be read, or a model cannot be built or traced.
    """
    if arguments.log and not arguments.html:
        raise UsageError("--log is for the timeline of the HTML file: give --html FILE too")
    if arguments.run is not None and not arguments.log:
        raise UsageError("--run is one of a log's runs: give --log FILE too")
    logged = read_log(arguments.log, arguments.run) if arguments.log else None  # before what takes long
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an encoding may lack what is shown
    whole = _find(arguments, build)
    found = whole.only(stage=arguments.stage, site=arguments.site, changed=arguments.only_changed)
    try:
        if arguments.html:
            write_page(found, arguments.html, logged)
        if arguments.json:
            _write(found.to_json(), arguments.json)
        elif not arguments.html:
            _print(found, arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as head, has read enough; Python would complain at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(found.changed)


def _find(arguments: argparse.Namespace, build: Build) -> GraphDiff:
    names = arguments.models
    if len(names) > 2:
        raise UsageError(f"{len(names)} arguments, but one model, one snapshot or two snapshots can be shown")
    if all(name.endswith(".json") for name in names):
        snapshots = [read_snapshot(name) for name in names]
        return compare(*snapshots) if len(snapshots) == 2 else stages_of(snapshots[0])
    if len(names) == 2:
        raise UsageError(
            f"{names[0]!r} and {names[1]!r} are not both .json files. Write a snapshot of each model with "
            "skiplora diff MODEL --json FILE.json, and compare those."
        )
    model, inputs = build(names[0])
    return diff(model, kwargs=inputs, **scope_options(arguments.scope))


def _write(text: str, target: str) -> None:
    if target == "-":
        print(text)
        return
    with whole_file(target) as file:
        file.write(f"{text}\n".encode())


def _print(found: GraphDiff, arguments: argparse.Namespace) -> None:
    if arguments.text or not sys.stdout.isatty():
        text = found.text()
        if text:
            print(text)
        return
    try:
        from rich.console import Console

        from .terminal import print_diff
    except ImportError as error:
        raise UsageError(
            f'{error.name} is not installed, and colours need it: pip install "skiplora-fx[diff]", or give --text'
        ) from error
    print_diff(found, Console())
