"""A file of lines that is only ever appended to, a whole line at a time."""

from __future__ import annotations

import errno
import io
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

from .errors import FileError

_BLOCK = 1 << 16
"""Bytes that are read at once while the last newline is looked for."""
_LONGEST = 1 << 26
"""Bytes of a first or last line that are looked at: no log's is as long."""


class LineFile:
    """Appends lines, each whole in a single write past all buffers, so that a kill between any two leaves whole lines.

    What a kill in the middle of a line left is dropped when the file is opened again. Nothing else is ever taken away.

    Args:
        path: the file; its folder is made if there is none. It is opened to see whether it can be, and closed again.
        kind: what such a file is called.
        is_first: whether a first line, which may be cut off, is one of such a file; files of others are not touched.

    Raises:
        FileError: the file cannot be written, or is another's.
    """

    def __init__(self, path: str | Path, kind: str, is_first: Callable[[bytes], bool]) -> None:
        self.path = _absolute(path)
        self._file: io.FileIO | None = None
        with _opened(self.path, self._refusal), self.path.open("rb") as file:
            first = file.readline(_LONGEST)
        if first and not is_first(first):
            raise self._refusal(f"it is no {kind}, and what is in it would be mixed up with one")

    def is_empty(self) -> bool:
        """Return whether the file holds no line."""
        return not os.fstat(self._whole().fileno()).st_size

    def write(self, line: str) -> None:
        """Append a line.

        Raises:
            OSError: the disk is full, for instance; the file then ends as it did before.
        """
        file, data = self._whole(), line.encode() + b"\n"
        written = 0
        try:
            written = file.write(data)
            if written != len(data):
                raise OSError(errno.ENOSPC, f"{written} of a line's {len(data)} bytes could be written")
        except OSError as error:
            os.ftruncate(file.fileno(), os.fstat(file.fileno()).st_size - written)
            error.filename = str(self.path)
            raise

    def close(self) -> None:
        """Close the file; another line opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _whole(self) -> io.FileIO:
        """Return the file, opened, and ending with a whole line."""
        if self._file is None:
            file = _opened(self.path, self._refusal)
            _end_with_a_line(file, self.path, self._refusal)
            self._file = file
        return self._file

    def _refusal(self, reason: str) -> FileError:
        return FileError(f"log={str(self.path)!r} cannot be written: {reason}")


def _absolute(path: str | Path) -> Path:
    """Return where a file lies, wherever the process goes."""
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise FileError(f"log={path!r} is no path of a file")
    return Path(path).absolute()


def _opened(path: Path, refusal: Callable[[str], FileError]) -> io.FileIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file() and not path.is_dir():
            raise refusal("it is no regular file")  # and to open a pipe would wait for its reader
        return path.open("a+b", buffering=0)
    except OSError as error:
        culprit = "" if error.filename in (None, str(path)) else f": {error.filename}"
        raise refusal(f"{error.strerror}{culprit}") from error


def _end_with_a_line(file: io.FileIO, path: Path, refusal: Callable[[str], FileError]) -> None:
    size = file.seek(0, os.SEEK_END)
    begin = _begin_of_last_line(file, size)
    if begin == size:
        return
    if size - begin > _LONGEST:
        raise refusal(f"its last line has {size - begin} bytes and no end")
    file.seek(begin)
    last = file.read(size - begin)
    if _is_object(last):
        file.write(b"\n")
        return
    file.truncate(begin)
    warnings.warn(
        f"{path}: its last line was cut off, as by a kill, and is dropped ({size - begin} bytes); "
        "the lines before it are whole",
        stacklevel=2,
    )


def _begin_of_last_line(file: io.FileIO, end: int) -> int:
    """Return the place after the last newline, which is ``end`` if nothing was cut off."""
    while end:
        begin = max(end - _BLOCK, 0)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def _is_object(line: bytes) -> bool:
    """Return whether all of a line but its newline is there."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
