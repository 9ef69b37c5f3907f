"""What a line of a log says, checked: a run that begins, sites, a step, or numbers that were noted."""

from __future__ import annotations

import math
import reprlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .step_log import FORMAT, VERSION

_LAST_STEP = 2**53
"""Beyond it a picture's axis, which is of floats, cannot tell steps apart."""
_VERSIONS = (1, VERSION)


@dataclass(frozen=True)
class Header:
    """The first line of a run, or of a part of it.

    Attributes:
        run: its name; None in a log of version 1, which holds one run.
        continues: whether it goes on with the run before it in the file.
        policy: what decides, if that is known.
        sites: their names, as far as they are known.
    """

    run: str | None
    continues: bool
    policy: str | None
    sites: tuple[str, ...]

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Header:
        """Return what a line with a ``format`` says."""
        if line["format"] != FORMAT:
            raise ValueError(f"the format {FORMAT} is meant, found {reprlib.repr(line['format'])}")
        if line.get("version") not in _VERSIONS:
            raise ValueError(
                f"it is of version {reprlib.repr(line.get('version'))}; this reads {' and '.join(map(str, _VERSIONS))}"
            )
        policy = line.get("policy")
        return cls(
            run_in(line),
            bool(line.get("continues")),
            None if policy is None else str(policy),
            names_in(line) if "sites" in line else (),
        )


@dataclass(frozen=True)
class Step:
    """A line of an optimizer step; the first three are in the order of ``sites``, float64."""

    sites: tuple[str, ...]
    ratio: array[float]
    threshold: array[float]
    open: array[float]
    grad_norm: float
    backward_seconds: float

    @classmethod
    def of(cls, line: Mapping[str, Any], sites: tuple[str, ...]) -> Step:
        """Return what a line with a ``ratio`` says."""
        ratio, threshold, opens = (_column(line, name, sites) for name in ("ratio", "threshold", "open"))
        for site, value in zip(sites, opens, strict=True):
            if value not in (0, 1):
                raise ValueError(f"open of {_shown(site)}: 0 or 1 is meant, found {value:g}")
        return cls(sites, ratio, threshold, opens, number_in(line, "grad_norm"), number_in(line, "backward_seconds"))


def run_in(line: Mapping[str, Any]) -> str | None:
    """Return the name of a line's run."""
    run = line.get("run")
    if not isinstance(run, (str, type(None))):
        raise ValueError(f"run: a name is meant, found {reprlib.repr(run)}")
    return run


def step_in(line: Mapping[str, Any]) -> int:
    """Return the number of a line's step."""
    step = line.get("step")
    if type(step) is not int or not 0 <= step <= _LAST_STEP:
        raise ValueError(f"step: a whole number from 0 to 2^53 is meant, found {reprlib.repr(step)}")
    return step


def names_in(line: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a line's sites."""
    names = line["sites"]
    if not isinstance(names, list):
        raise ValueError(f"sites: a list of names is meant, found {type(names).__name__}")
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"sites: each is a name, found {reprlib.repr(name)}")
    return tuple(names)


def number_in(line: Mapping[str, Any], name: str) -> float:
    """Return a number of a line; NaN if it has none."""
    return _number(line.get(name), name)


def _column(line: Mapping[str, Any], name: str, sites: tuple[str, ...]) -> array[float]:
    values = line.get(name)
    if not isinstance(values, list):
        raise ValueError(f"{name}: a list is meant, found {type(values).__name__}")
    if len(values) != len(sites):
        raise ValueError(f"{name} has {len(values)} values for {len(sites)} sites")
    found = array("d")
    for site, value in zip(sites, values, strict=True):
        number = _number(value, f"{name} of {_shown(site)}")
        if number < 0:
            raise ValueError(f"{name} of {_shown(site)}: a number of at least 0 is meant, found {reprlib.repr(value)}")
        found.append(number)
    return found


def _number(value: Any, name: str) -> float:
    """Return a number as a line has it, see :class:`~skiplora_fx.step_log.StepLog`."""
    if value is None:
        return math.nan
    if value in ("inf", "-inf"):
        return float(value)
    if type(value) not in (int, float):
        raise ValueError(f"{name}: a number is meant, found {reprlib.repr(value)}")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{name}: {error}, found {reprlib.repr(value)}") from error


def _shown(name: str) -> str:
    return reprlib.repr(name)[1:-1]
