"""A run as lines of JSON: what every gate did at each step."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .line_file import LineFile
from .noted_numbers import noted_numbers

FORMAT = "skiplora-log"
VERSION = 2

_HEADER = ("format", "version", "run", "start", "continues", "policy", "sites")
_STEP = ("step", "ratio", "threshold", "open", "grad_norm", "backward_seconds")
_BEGIN = f'{{"format": "{FORMAT}"'.encode()


class StepLog:
    """Appends a run to a file, each line whole, so that a run that is killed leaves a file that can be read.

    Lines are objects of strict JSON, and each names its ``"run"``. The first line of a run, or of a part of it that was
    resumed, is ``{"format", "version", "run", "start", "continues", "policy", "sites"}``: the number of the step that
    it starts at, whether it goes on with the run before it in the file, the policy, and the names of the sites as far
    as they are known. ``{"run", "sites"}`` follows wherever the sites change. For each optimizer step there is
    ``{"run", "step", "ratio", "threshold", "open", "grad_norm", "backward_seconds"}``, the middle three as lists in the
    order of the sites: M, τ in force, and whether the gate was open in any backward of the step. ``grad_norm`` is the
    L2 norm over the sites that were. Other numbers of a step, such as a loss, come as ``{"run", "step", "loss"}``. NaN
    is null, and the infinities are ``"inf"`` and ``"-inf"``.

    A run that starts at step 0 is a new one. One that starts later goes on with that whose name :meth:`resume` was
    told, or, if it was told none, with the last in the file.

    Args:
        path: the file; its folder is made if there is none. What is in it stays.

    Attributes:
        run: the name of the run.

    Raises:
        FileError: the file cannot be written, or holds something else.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = LineFile(path, "skiplora log", is_header)
        self.path = self._file.path
        self.run = secrets.token_hex(4)
        self._resumes = False
        self._begun = False
        self._names: list[str] = []

    def resume(self, run: str | None) -> None:
        """Go on with a run, by its name; None if there is none."""
        if run is not None and run != self.run:
            self.run, self._resumes, self._begun = run, True, False

    def step(
        self, step: int, rows: Sequence[tuple[str, float, float, bool]], *, policy: str | None = None, **numbers: float
    ) -> None:
        """Write a step.

        Args:
            step: its number, from 0.
            rows: for each site its name, ratio, threshold, and whether it was open.
            policy: what decides, for the first line of the run.
            numbers: ``grad_norm`` and ``backward_seconds``, if they are known.
        """
        names = [name for name, _, _, _ in rows]
        self._begin(step, policy, names)
        if names != self._names:
            self._names = names
            self._write({"sites": names})
        self._write(
            {
                "step": step,
                "ratio": [_short(ratio) for _, ratio, _, _ in rows],
                "threshold": [_short(threshold) for _, _, threshold, _ in rows],
                "open": [int(is_open) for _, _, _, is_open in rows],
                **{name: _short(number) for name, number in numbers.items()},
            }
        )

    def note(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Write other numbers of a step.

        Raises:
            UsageError: a name is the log's own, or a value is no number or more than one.
        """
        found = noted_numbers(numbers, list(dict.fromkeys(_HEADER + _STEP)))
        if not found:
            return
        self._begin(step, None, [])
        self._write({"step": step, **{name: _strict(number) for name, number in found.items()}})

    def close(self) -> None:
        """Close the file; another line opens it again."""
        self._file.close()

    def _begin(self, step: int, policy: str | None, names: list[str]) -> None:
        """Write the first line of the run, unless it is there."""
        if self._begun and not self._file.is_empty():
            return
        self._begun, self._names = True, names
        continues = step > 0 and not self._resumes
        header = (FORMAT, VERSION, self.run, step, continues, policy, names)
        self._file.write(json.dumps(dict(zip(_HEADER, header, strict=True)), allow_nan=False))

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({"run": self.run, **line}, allow_nan=False))


def is_header(line: bytes) -> bool:
    """Return whether a line, which may be cut off, is the first of a run."""
    if not line.endswith(b"\n") and _BEGIN.startswith(line[: len(_BEGIN)]):
        return True
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("format") == FORMAT


def _short(number: float) -> float | str | None:
    """Return a number to six digits, which is all that a picture needs, as strict JSON has it."""
    return _strict(float(f"{number:.6g}"))


def _strict(number: float) -> float | str | None:
    if math.isnan(number):
        return None
    return number if math.isfinite(number) else f"{number}"  # inf, -inf
