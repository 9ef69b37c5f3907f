"""What a run of the benchmark is made with."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar


@dataclass(frozen=True)
class Settings:
    """How every run is trained, whatever its arm.

    Attributes:
        steps: optimizer steps of a run of length 1.
        batch: rows in a step.
        tokens: in a row; longer rows are cut, shorter ones padded.
        test_rows: rows of the test split that a run is judged on.
        learning_rate: of AdamW at the end of its warm-up, from where it falls linearly to 0.
        warmup: share of the steps in which the learning rate rises and every gate is open.
        rank: of the adapters; their α is twice that.
        threshold: τ of the threshold arms.
        device: where it runs.
    """

    steps: int = 90
    batch: int = 8
    tokens: int = 64
    test_rows: int = 500
    learning_rate: float = 2e-3
    warmup: float = 0.1
    rank: int = 8
    threshold: float = 0.05
    device: str = "cpu"


Kind = TypeVar("Kind", bound=Settings)


def add_settings(parser: argparse.ArgumentParser, kind: type[Settings]) -> None:
    """Give a parser an option for each field; what is not given is None."""
    for field in fields(kind):
        told = f"(default: as in the folder of results, else {field.default})"
        parser.add_argument(f"--{field.name}", type=type(field.default), help=told)


def settings_of(args: argparse.Namespace, kind: type[Kind], kept: Mapping[str, Any] | None) -> Kind:
    """Return what the options say.

    Args:
        args: with a value or None for each field.
        kind: of the settings.
        kept: those of the runs that are there already, which hold where nothing is said; None if there are none.
    """
    said = {field.name: getattr(args, field.name) for field in fields(kind)}
    return kind(**{**(kept or {}), **{name: value for name, value in said.items() if value is not None}})
