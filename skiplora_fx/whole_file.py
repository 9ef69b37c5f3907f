"""A file that is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import FileError


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Give a file to write to, which takes the place of ``path`` once all is written, and is gone if something fails.

    Raises:
        FileError: it cannot be written; names ``path`` and the reason.
    """
    target = Path(os.path.realpath(path))  # a link stays one
    beside = target.with_name(f".skiplora-{os.getpid()}{target.suffix}")
    try:
        with beside.open("wb") as file:
            yield file
        beside.replace(target)
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            beside.unlink()
