"""The command line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import NoReturn, TypeVar

from problems import InputError
from tune import Settings

from skiplora_fx.config import CHOICES
from skiplora_fx.policy import POLICIES

BACKENDS = {"inductor": ("inductor",), "skiplora": ("skiplora",), "both": ("inductor", "skiplora")}
"""What ``--backend`` runs, in this order."""

Kind = Callable[[str], float]
AnySettings = TypeVar("AnySettings", bound=Settings)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. `{self.prog} --help` lists what can be given.")


def parse(argv: Sequence[str] | None, description: str, demo: Settings) -> argparse.Namespace:
    """Parse the command line; an option that was not given is None, for :func:`settings_from` to fill.

    Raises:
        InputError: an option is unknown or its value cannot be used.
    """
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    _add_data_options(parser)
    _add_setting_options(parser, demo)
    args = parser.parse_args(argv)
    if (args.model_name is None) != (args.dataset is None):
        given, missing = ("--model_name", "--dataset") if args.dataset is None else ("--dataset", "--model_name")
        parser.error(f"{given} was given without {missing}; give both, or neither for the run that needs no network")
    return args


def settings_from(args: argparse.Namespace, defaults: AnySettings) -> AnySettings:
    """Return ``defaults`` with what the command line says in their place."""
    names = [field.name for field in fields(Settings)]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if "epochs" in given:
        given.setdefault("max_steps", -1)  # the default number of steps would outvote the epochs that were asked for
    return replace(defaults, **given)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model_name", metavar="NAME", help="model of the Hugging Face Hub, or a folder that save_pretrained wrote")
    add(
        "--dataset",
        metavar="NAME",
        help="dataset of the Hub, or a .csv, .tsv, .json, .jsonl or .txt file, or a folder with train and validation "
        "(or test) files. With a column called label: classification of one or two columns of text; without: "
        "language modelling of a column called text",
    )
    add("--task", metavar="NAME", help="configuration of the dataset (glue: mrpc); of a folder, a subfolder")
    add(
        "--output_dir", metavar="FOLDER", help="where the adapters are saved (default: nowhere, nothing is left behind)"
    )
    add("--backend", choices=BACKENDS, default="both", help="what to tune under (default: %(default)s)")


def _add_setting_options(parser: argparse.ArgumentParser, demo: Settings) -> None:
    def add(name: str, kind: Kind | None, text: str, **others: object) -> None:
        usual, special = getattr(Settings, name), getattr(demo, name)
        default = f"{usual}" if usual == special else f"{usual}; without a dataset {special}"
        parser.add_argument(f"--{name}", type=kind, help=f"{text} (default: {default})", **others)

    add("epochs", _number(above=0), "passes over the training data", metavar="N")
    add("max_steps", _steps, "optimizer steps, whatever --epochs says; -1: as many as it says", metavar="N")
    add("threshold", _number(), "τ: an adapter with ||Δh|| / ||h|| < τ is not run backward", metavar="τ")
    add("scope", None, "what a skipped adapter detaches: Δh, or its layer's h + Δh", choices=CHOICES["scope"])
    add("policy", None, "who decides what is skipped; only threshold looks at τ", choices=tuple(POLICIES))
    add("decision", None, "whose M decides: this forward's, or the last step's", choices=CHOICES["decision"])
    add("skipped_grad", None, "the gradient of what is skipped", choices=CHOICES["skipped_grad"])
    add("log", None, "write a line for each step under skiplora; `skiplora plot FILE` draws them", metavar="FILE")
    add("warmup_steps", _whole(0), "steps before anything is skipped", metavar="N")
    add("probe_every", _whole(0), "after that, one step in N skips nothing; 0: every step may skip", metavar="N")
    add("rank", _whole(1), "rank of the adapters", metavar="R")
    add("alpha", _whole(1), "the adapters' output is scaled by alpha / rank", metavar="A")
    add("targets", None, "layers that get an adapter: names separated by commas, or all-linear", metavar="NAMES")
    add("batch_size", _whole(1), "examples in a step", metavar="N")
    add("max_length", _whole(8), "tokens in an example: longer ones are cut", metavar="N")
    add("learning_rate", _number(above=0), "the greatest; it falls linearly to 0", metavar="LR")
    add("seed", _whole(0), "draws the adapters, the order of the examples and what is held out", metavar="N")


def _whole(least: int) -> Kind:
    def kind(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return kind


def _steps(text: str) -> int:
    return -1 if text == "-1" else int(_whole(1)(text))


def _number(above: float | None = None) -> Kind:
    allowed = "of at least 0" if above is None else f"above {above:g}"

    def kind(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isnan(value) or value < 0 or (above is not None and not above < value < math.inf):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {allowed}")
        return value

    return kind
