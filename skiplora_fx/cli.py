"""The ``skiplora`` command."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib import metadata

from tabulate import tabulate

from . import __version__
from .passes import PIPELINE

_PACKAGES = ("torch", "dd", "tabulate", "transformers", "peft", "accelerate", "datasets")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="skiplora", description=__doc__)
    parser.add_argument("--version", action="version", version=f"skiplora_fx {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("env", help="versions, and whether torch finds the backend: put this into a bug report")
    commands.add_parser("passes", help="the passes, in order, and why each stands where it does")
    command = parser.parse_args(argv).command
    print(_environment() if command == "env" else _passes())
    return 0


def _environment() -> str:
    rows = [("skiplora_fx", __version__), ("python", platform.python_version())]
    rows += [(name, _version(name)) for name in _PACKAGES]
    return tabulate([*rows, ('backend "skiplora"', _backend_status())], tablefmt="plain")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _backend_status() -> str:
    import torch

    return "found" if "skiplora" in torch.compiler.list_backends() else "not found: reinstall skiplora_fx"


def _passes() -> str:
    rows = [(stage.name, stage.graph, stage.reason) for stage in PIPELINE]
    return tabulate(rows, headers=["pass", "graph", "why there"])


if __name__ == "__main__":
    sys.exit(main())
