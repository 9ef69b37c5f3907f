"""The ``skiplora`` command."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tabulate import tabulate

from . import __version__
from .config import CHOICES, scope_options
from .errors import FileError, SkipLoraError
from .nothing_found import NoLoRAWarning
from .passes import PIPELINE

_PACKAGES = ("dd", "tabulate", "transformers", "peft", "accelerate", "datasets")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="skiplora", description=__doc__)
    parser.add_argument("--version", action="version", version=f"skiplora_fx {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("env", help="versions, and whether torch finds the backend: put this into a bug report")
    commands.add_parser("passes", help="the passes, in order, and why each stands where it does")
    _add_explain(commands)
    _add_diff(commands)
    _add_plot(commands)
    arguments = parser.parse_args(argv)
    try:
        with _quiet():
            if arguments.command == "diff":
                return _diff(arguments)
            print(_COMMANDS[arguments.command](arguments))
    except SkipLoraError as error:
        print(f"skiplora {arguments.command}: {error}", file=sys.stderr)
        return 2 if arguments.command == "diff" or isinstance(error, FileError) else 1
    return 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Show no warning but the project's own: those of torch and transformers are about a training that does not happen.

    With ``TORCH_LOGS`` set, logs are shown.
    """
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", NoLoRAWarning)
        logging.disable(level if "TORCH_LOGS" in os.environ else logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)


def _add_explain(commands: Any) -> None:
    explain = commands.add_parser(
        "explain",
        help="what would be gated in a model, what not and why, and what each gate can save",
        description="Builds a model from its config, on the meta device, adds LoRA adapters, and says what skiplora "
        "would gate, what not and why, and what each gate can save. No weights are read.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    explain.add_argument("model", help="id on the Hub, or a folder with a config.json")
    _add_model_arguments(explain)
    explain.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _add_diff(commands: Any) -> None:
    from .graphdiff.command import add_arguments

    diff = commands.add_parser(
        "diff",
        help="what the passes do to a model's graphs, stage by stage, or how two snapshots differ",
        description="Builds a model as explain does and shows what the passes do to its graphs, stage by stage; or "
        "compares two snapshots that --json wrote, whatever their nodes are called. Exit status: 0 nothing differs, "
        "1 something does, 2 an error.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_arguments(diff)
    _add_model_arguments(diff)


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what describes a model with adapters, beside its name."""
    parser.add_argument("--r", type=_count, default=16, help="rank of the adapters")
    parser.add_argument(
        "--target-modules",
        nargs="+",
        default=[],
        metavar="NAME",
        help="modules to adapt, or all-linear; without it those that PEFT adapts in such a model",
    )
    parser.add_argument("--layers", type=_count, help="number of layers, instead of the model's own")
    parser.add_argument("--batch", type=_count, default=1, help="sequences, or images, in a batch")
    parser.add_argument("--length", type=_count, default=512, help="tokens in a sequence")
    parser.add_argument("--dtype", default="bfloat16", help="of the frozen weights")
    parser.add_argument("--scope", choices=CHOICES["scope"], default="adapter", help="what a shut gate detaches")
    parser.add_argument("--device", default="meta", help="cpu or cuda for a model that cannot be traced on meta")


def _add_plot(commands: Any) -> None:
    plot = commands.add_parser(
        "plot",
        help="a picture of a run from its log of steps",
        description="Draws a log of steps: adapters over steps, coloured by M and hatched where shut, with loss and "
        "backward time below.",
    )
    plot.add_argument("log", help="what attach(..., log=...) or SkipLoraCallback(log=...) wrote")
    plot.add_argument("-o", "--out", help="the picture, .png, .pdf or .svg; beside the log as .png if not given")
    plot.add_argument("--run", type=_count, metavar="N", help="which of the log's runs, from 1; the last if not given")
    plot.add_argument(
        "--max-mib", type=_count, metavar="N", default=512, help="the size of the largest log that is read"
    )


def _plot(arguments: argparse.Namespace) -> str:
    from .plot import plot

    out = arguments.out or str(Path(arguments.log).with_suffix(".png"))
    run = plot(arguments.log, out, arguments.run, max_bytes=arguments.max_mib << 20)
    return f"wrote {out}" + (f", run {run.number} of {run.runs} (--run chooses)" if run.runs > 1 else "")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _explain(arguments: argparse.Namespace) -> str:
    from .explain import explain

    model, batch = _lora_model(arguments, arguments.model)
    found = explain(model, **batch, options=scope_options(arguments.scope))
    return found.to_json() if arguments.json else str(found)


def _diff(arguments: argparse.Namespace) -> int:
    from .graphdiff.command import run

    return run(arguments, lambda source: _lora_model(arguments, source))


def _lora_model(arguments: argparse.Namespace, source: str) -> tuple[Any, dict[str, Any]]:
    from .integrations.peft_model import LoRAModel, build_lora_model

    return build_lora_model(
        LoRAModel(
            source=source,
            rank=arguments.r,
            targets=arguments.target_modules,
            batch=arguments.batch,
            length=arguments.length,
            dtype=arguments.dtype,
            device=arguments.device,
            layers=arguments.layers,
        )
    )


def _environment() -> str:
    import torch  # whose own version says for which CUDA it is built; the package's need not

    rows = [("skiplora_fx", __version__), ("python", platform.python_version()), ("torch", torch.__version__)]
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


_COMMANDS: dict[str, Callable[[argparse.Namespace], str]] = {
    "env": lambda arguments: _environment(),
    "passes": lambda arguments: _passes(),
    "explain": _explain,
    "plot": _plot,
}


if __name__ == "__main__":
    sys.exit(main())
