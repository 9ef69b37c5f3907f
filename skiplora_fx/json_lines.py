"""Reads lines of JSON, one at a time, from a file that may be anything."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import FileError

MAX_BYTES = 512 << 20
"""The most that is read unless told otherwise: what is read is held in memory, in about twice the space."""


def json_lines(path: str | Path, max_bytes: int = MAX_BYTES) -> Iterator[tuple[int, Any]]:
    """Yield each line's number, from 1, and what it holds. A last line that was cut off, as by a kill, is left out.

    A first line that was cut off, or holds something else, comes as None.

    Args:
        path: the file; a pipe will do.
        max_bytes: the most that is read.

    Raises:
        FileError: the file cannot be read, is empty or too large, or a line is no strict JSON.
    """
    try:
        with Path(path).open("rb") as file:
            yield from _lines(file, path, max_bytes)
    except OSError as error:
        raise FileError(f"{path} cannot be read as a log: {error.strerror}") from error


def _lines(file: BinaryIO, path: str | Path, max_bytes: int) -> Iterator[tuple[int, Any]]:
    too_large = FileError(
        f"{path} is larger than {max_bytes / 2**20:.3g} MiB, the most that is read; where there is the memory for it, "
        "a larger max_bytes reads more (skiplora plot --max-mib)"
    )
    if os.fstat(file.fileno()).st_size > max_bytes:  # 0 for a pipe
        raise too_large
    number, left = 0, max_bytes
    while line := file.readline(left + 1):
        number, left = number + 1, left - len(line)
        if left < 0:
            raise too_large
        try:
            found = json.loads(line, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            if number > 1 and not line.endswith(b"\n"):
                return
            if number > 1:
                raise FileError(f"{path}, line {number}: not JSON ({_reason(error)})") from error
            found = None
        yield number, found
    if not number:
        raise FileError(f"{path} is empty")


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is none of its numbers")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "too deeply nested" if isinstance(error, RecursionError) else str(error).partition(";")[0]
