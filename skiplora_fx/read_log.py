"""Reads what :class:`~skiplora_fx.step_log.StepLog` wrote, and tells its runs apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import FileError
from .json_lines import MAX_BYTES, json_lines
from .log_line import Header, Step, names_in, number_in, run_in, step_in
from .logged_run import Recorded, Run
from .step_log import FORMAT


def read_log(path: str | Path, run: int | None = None, *, max_bytes: int = MAX_BYTES) -> Run:
    """Read a run from a log. A last line that was cut off, as by a kill, is left out.

    Args:
        path: the log; a pipe will do.
        run: which of its runs, from 1 in the order in which they began; the one that was written last if not given. A
            run that came to no step does not count.
        max_bytes: the size of the largest log that is read.

    Raises:
        FileError: there is no such file, it is no such log or too large, or it holds no step or no such run; names the
            line.
    """
    found = _Runs()
    for number, line in _log_lines(path, max_bytes):
        try:
            found.take(line)
        except ValueError as error:
            raise FileError(f"{path}, line {number}: not a line of a skiplora log: {error}") from error
    runs = [recorded for recorded in found.runs if recorded.steps]
    if not runs:
        raise FileError(f"{path} holds no step: a step is written at each optimizer step of a gated model")
    chosen = run if run is not None else next(n for n, recorded in enumerate(runs, 1) if recorded is found.latest)
    if not 1 <= chosen <= len(runs):
        held = f"{len(runs)} runs, 1 to {len(runs)}" if len(runs) > 1 else "1 run"
        raise FileError(f"{path} holds {held}; there is no run {chosen}")
    return runs[chosen - 1].assembled(chosen, len(runs))


def _log_lines(path: str | Path, max_bytes: int) -> Iterator[tuple[int, Any]]:
    for number, line in json_lines(path, max_bytes):
        if number == 1 and not (isinstance(line, dict) and line.get("format") == FORMAT):
            raise FileError(f'{path} is no skiplora log: its first line is not {{"format": "{FORMAT}", …}}')
        yield number, line


@dataclass
class _Part:
    """What is written under one name: to which run it belongs, and which sites its next step is about."""

    recorded: Recorded
    sites: tuple[str, ...]


@dataclass
class _Runs:
    """The runs of a log, in the order in which they began; parts go by the name that their lines bear.

    Attributes:
        latest: the run whose step was written last.
    """

    runs: list[Recorded] = field(default_factory=list)
    latest: Recorded | None = None
    parts: dict[str | None, _Part] = field(default_factory=dict)

    def take(self, line: Any) -> None:
        """Take a line in.

        Raises:
            ValueError: it is none of a log.
        """
        if not isinstance(line, dict):
            raise ValueError(f"an object is meant, found {type(line).__name__}")
        if "format" in line:
            self._begin(Header.of(line))
            return
        part = self.parts.get(run_in(line))
        if part is None:
            raise ValueError(f"run {run_in(line)!r} was not begun")
        if "sites" in line:
            part.sites = names_in(line)
        elif "ratio" in line:
            part.recorded.steps[step_in(line)] = Step.of(line, part.sites)
            self.latest = part.recorded
        elif "step" not in line:
            raise ValueError(f"it has neither sites nor a step, but {', '.join(map(repr, line))[:80] or 'nothing'}")
        elif "loss" in line:
            part.recorded.losses[step_in(line)] = number_in(line, "loss")

    def _begin(self, header: Header) -> None:
        known = self.parts.get(header.run)
        if known is not None:
            recorded = known.recorded
        elif header.continues and self.runs:
            recorded = self.latest or self.runs[-1]
        else:
            recorded = Recorded()
            self.runs.append(recorded)
        recorded.policy = header.policy or recorded.policy
        self.parts[header.run] = _Part(recorded, header.sites)
